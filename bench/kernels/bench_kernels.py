"""Times the repulsion force and the median distance beside their peers, after checking each.

make bench
"""

import pytest
import torch

from bench.common import environment
from bench.kernels.providers import FORCE, MEDIAN
from fastrepulse.kernels.reference import rbf_repulsion_reference

FORCE_SHAPES = [(64, 16384), (256, 16384), (1000, 64), (1000, 1024), (4096, 64), (4096, 768)]
FORCE_SHAPES += [(10000, 16), (100_000, 64)]
MEDIAN_SHAPES = [(1000, 64), (4096, 64), (10000, 16)]
MAX_FLOATS = 1.5e9
MAX_KEOPS_WORK = 2e9
"""N^2 d beyond which KeOps takes minutes to be compiled or to run."""


def cases(providers, shapes):
    found = []
    for n, d in shapes:
        for provider in providers:
            if provider.stores(n, d) > MAX_FLOATS:
                continue
            if provider.name == "KeOps" and n * n * d > MAX_KEOPS_WORK:
                continue
            found.append(pytest.param(provider, n, d, id=f"{provider.name}-N{n}-d{d}"))
    return found


def draw(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def rounds(n: int, d: int) -> int:
    return 30 if n * n * d < 1e8 else 9 if n * n * d < 3e10 else 3


@pytest.mark.parametrize(("provider", "n", "d"), cases(FORCE, FORCE_SHAPES))
def test_force(benchmark, provider, n, d):
    x, h = draw(n, d), 2.0 * d / 9.2
    some = torch.arange(0, n, max(1, n // 50))
    expected, _ = rbf_repulsion_reference(x[some].double(), h, x.double())
    error = (provider.compute(x, h)[some].double() - expected).norm() / expected.norm()
    assert error < 1e-3, f"{provider.name} is wrong by {error:.1e}"
    benchmark.group = f"force N={n} d={d}"
    benchmark.extra_info |= {"op": "rbf_repulsion", "provider": provider.name, "N": n, "d": d}
    benchmark.extra_info |= {"error": error.item(), "environment": environment()}
    benchmark.pedantic(provider.compute, (x, h), rounds=rounds(n, d), warmup_rounds=1)


@pytest.mark.parametrize(("provider", "n", "d"), cases(MEDIAN, MEDIAN_SHAPES))
def test_median(benchmark, provider, n, d):
    x = draw(n, d)
    expected = torch.pdist(x.double()).square().median().item()
    assert provider.compute(x, 0.0).item() == pytest.approx(expected, rel=1e-4)
    benchmark.group = f"median N={n} d={d}"
    benchmark.extra_info |= {"op": "median_sq_distance", "provider": provider.name, "N": n, "d": d}
    benchmark.extra_info |= {"environment": environment()}
    benchmark.pedantic(provider.compute, (x, 0.0), rounds=rounds(n, d), warmup_rounds=1)
