"""Checks and times the repulsion force and the median distance, and other implementations.

make bench
"""

import time
from functools import cache

import pytest
import torch

from bench.common import environment
from bench.kernels.providers import FORCE, MEDIAN
from fastrepulse import native
from fastrepulse.kernels.reference import rbf_repulsion_reference

FORCE_SHAPES = [(64, 16384), (128, 16384), (256, 16384), (1000, 64), (1000, 1024), (1200, 2080)]
FORCE_SHAPES += [(3000, 300), (4096, 64), (4096, 768), (8192, 48), (10000, 16), (100_000, 64)]
MEDIAN_SHAPES = [(1000, 64), (4096, 64), (10000, 16)]


def cases(providers, shapes):
    return [
        pytest.param(provider, n, d, id=f"{provider.name}-N{n}-d{d}")
        for n, d in shapes
        for provider in providers
        if provider.can_run(n, d)
    ]


def draw(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def rounds(compute, *arguments) -> int:
    """Returns the number of calls to time: about a second's worth, 3 to 30, or 2 if slow."""
    start = time.perf_counter()
    compute(*arguments)
    seconds = time.perf_counter() - start
    return 2 if seconds > 4 else min(30, max(3, int(1 / seconds)))


def best_time(compute, repeats: int = 20) -> float:
    """Returns the shortest time of a call, in seconds."""
    compute()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return min(times)


@cache
def rates() -> tuple[float, float]:
    """Returns PyTorch's rates of float32 matrix products (FLOP/s) and exponentials (1/s)."""
    a = torch.randn(2048, 2048)
    b, out = -torch.rand(1 << 20), torch.empty(1 << 20)
    return (
        2 * len(a) ** 3 / best_time(lambda: a @ a),
        b.numel() / best_time(lambda: torch.exp(b, out=out)),
    )


def floor(n: int, d: int) -> float:
    """Returns the larger time of 3 N^2 d FLOP and N^2 / 2 exponentials at PyTorch's rates.

    Two matrix products need 3 N^2 d FLOP if each pair is visited once.
    """
    product, exponentials = rates()
    return max(3 * n * n * d / product, n * n / 2 / exponentials)


def machine() -> dict[str, str]:
    return {"environment": environment(), "instruction_set": native.cpu_capability()}


@pytest.mark.parametrize(("provider", "n", "d"), cases(FORCE, FORCE_SHAPES))
def test_force(benchmark, provider, n, d):
    x, h = draw(n, d), 2.0 * d / 9.2
    some = torch.arange(0, n, max(1, n // 50))
    expected, _ = rbf_repulsion_reference(x[some].double(), h, x.double())
    error = (provider.compute(x, h)[some].double() - expected).norm() / expected.norm()
    assert error < 1e-3, f"{provider.name} is wrong by {error:.1e}"
    benchmark.group = f"force N={n} d={d}"
    benchmark.extra_info |= {"op": "rbf_repulsion", "provider": provider.name, "N": n, "d": d}
    benchmark.extra_info |= {"error": error.item(), "floor": floor(n, d), "rates": rates()}
    benchmark.extra_info |= machine()
    benchmark.pedantic(provider.compute, (x, h), rounds=rounds(provider.compute, x, h))


@pytest.mark.parametrize(("provider", "n", "d"), cases(MEDIAN, MEDIAN_SHAPES))
def test_median(benchmark, provider, n, d):
    x = draw(n, d)
    expected = torch.pdist(x.double()).square().median().item()
    assert provider.compute(x, 0.0).item() == pytest.approx(expected, rel=1e-4)
    benchmark.group = f"median N={n} d={d}"
    benchmark.extra_info |= {"op": "median_sq_distance", "provider": provider.name, "N": n, "d": d}
    benchmark.extra_info |= machine()
    benchmark.pedantic(provider.compute, (x, 0.0), rounds=rounds(provider.compute, x, 0.0))
