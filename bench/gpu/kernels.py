"""The kernels on a device: peak rates, correctness against float64, timings beside PyTorch."""

import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.timing import added_memory, milliseconds
from fastrepulse.kernels import dispatch, median_rbf_repulsion, median_sq_distance, rbf_repulsion
from fastrepulse.kernels.reference import median_rank

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest relative error of the force against float64 on the same input."""

CHECKED = [(2, 1), (7, 3), (64, 64), (127, 2080), (128, 16384), (129, 2080), (1000, 1023)]
# The most informative shapes come first, in case the run is stopped
TIMED = [(4096, 768), (10_000, 64), (100_000, 64), (1024, 64), (256, 16384), (64, 64)]
TIMED += [(n, d) for n in (16, 128, 256, 1024, 4096) for d in (64, 2080, 16384)]
TIMED += [(10_000, 16), (10_000, 768), (64, 16384)]
STORABLE = 2**28
"""Largest N^2 that plain PyTorch is timed with."""


def two_products(x: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """Returns force and similarity from two matrix products in PyTorch, which stores N x N."""
    norms = x.square().sum(dim=1)
    distances = (norms[:, None] + norms - 2 * x @ x.mT).clamp_min(0)
    k = torch.exp(distances / -h)
    total = k.sum(dim=1)
    return (2 / h) * (total[:, None] * x - k @ x), total


def exact(x: Tensor, h: float) -> Tensor:
    """Returns the force in float64, computed in blocks of rows."""
    x = x.double()
    x = x - x.mean(dim=0)
    parts = []
    for rows in x.split(512):
        d = torch.cdist(rows, x, compute_mode="donot_use_mm_for_euclid_dist").square()
        k = torch.exp(d / -h)
        parts.append((2 / h) * (k.sum(dim=1, keepdim=True) * rows - k @ x))
    return torch.cat(parts)


def versions(device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """Describes the device and measures its rates of copies, products and exponentials."""
    # With --device cpu the name is the processor's, even on a machine with a GPU
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    yield {"what": "device", "name": name, "torch": torch.__version__, "python": sys.version[:6]}
    for backend in dispatch.BACKENDS:
        yield {"what": "backend", "name": backend, "serves": dispatch.describe(backend, device)}
    size = 256 if smoke else 8192
    source = torch.randn(size, 8 * size, device=device)
    target = torch.empty_like(source)
    ms, _ = milliseconds(lambda: target.copy_(source), device)
    yield {"what": "copy", "GB/s": 2 * source.nbytes / ms / 1e6}
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(size, size, device=device, dtype=dtype)
        ms, _ = milliseconds(partial(torch.matmul, a, a), device)
        kind = "tf32" if tf32 else str(dtype)[6:]
        yield {"what": f"product {kind}", "TFLOP/s": 2 * size**3 / ms / 1e9}
    torch.backends.cuda.matmul.allow_tf32 = False
    ms, _ = milliseconds(lambda: torch.exp(source, out=target), device)
    yield {"what": "exponentials", "G/s": source.numel() / ms / 1e6}


def backends_on(device: str, dtype: torch.dtype) -> list[str]:
    return [b for b in ("native", "triton") if dispatch.why_not(b, device, dtype) is None]


def correctness(device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """Checks every kernel against float64, and that a second call gives equal bits."""
    for n, d in CHECKED[:3] if smoke else CHECKED:
        for dtype in TOLERANCE:
            x = torch.randn(n, d, generator=torch.Generator().manual_seed(n)).to(device, dtype)
            others = torch.randn(n + 5, d, generator=torch.Generator().manual_seed(d)).to(x)
            weights = torch.rand(n + 5, device=device)
            rank = median_rank(n)
            median = torch.pdist(x.double().cpu()).square().kthvalue(rank + 1).values.item()
            h = median / torch.tensor(float(n)).log().item()
            truth = exact(x, h)
            both = rbf_repulsion(x.double(), h, others.double(), weights, backend="reference")[0]
            for backend in backends_on(device, dtype):
                force, _ = rbf_repulsion(x, h, backend=backend)
                again, _ = rbf_repulsion(x, h, backend=backend)
                joint, _, bandwidth = median_rbf_repulsion(x, backend=backend)
                weighted, _ = rbf_repulsion(x, h, others, weights, backend=backend)
                found = median_sq_distance(x, backend=backend).item()
                errors = {
                    "force": relative(force, truth),
                    "weighted": relative(weighted, both),
                    "joint": relative(joint, exact(x, bandwidth.item())),
                    "median": abs(found - median) / median,
                }
                row = {"what": "error", "backend": backend, "N": n, "d": d, "dtype": str(dtype)[6:]}
                yield {**row, **errors, "repeats": torch.equal(force, again)}
                if max(errors.values()) > TOLERANCE[dtype] or not torch.equal(force, again):
                    raise AssertionError(f"wrong on this device: {row}, {errors}")


def relative(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def providers(x: Tensor, smoke: bool) -> dict[str, Callable[[], Any]]:
    """Returns calls that compute the force at h = 2 d and at the median bandwidth."""
    h, device = 2.0 * x.shape[1], x.device.type
    calls: dict[str, Callable[[], Any]] = {}
    for b in backends_on(device, x.dtype):
        calls[b] = partial(rbf_repulsion, x, h, backend=b)
        calls[f"{b}, median"] = partial(median_rbf_repulsion, x, backend=b)
    if len(x) ** 2 <= STORABLE:
        calls["two products"] = partial(two_products, x, h)
        if x.dtype == torch.float32 and device == "cuda":
            calls["two products, tf32"] = partial(with_tf32, two_products, x, h)
        if x.shape in ((1024, 64), (4096, 768)) and not smoke:
            calls["two products, compiled"] = partial(
                torch.compile(two_products, dynamic=False), x, h
            )
    return calls


def kernels(device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """Times our force at a given and at the median bandwidth, beside plain PyTorch."""
    for n, d in [(64, 64), (256, 64)] if smoke else TIMED:
        for dtype in (torch.float32,) if smoke else (torch.float32, torch.bfloat16):
            x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            for provider, call in providers(x, smoke).items():
                with added_memory(device) as added:
                    ms, spread = milliseconds(call, device)
                row = {"what": "force", "provider": provider, "N": n, "d": d}
                row |= {"dtype": str(dtype)[6:], "ms": ms, "spread": spread, **added}
                yield row


def with_tf32(call: Callable[[Tensor, float], Any], x: Tensor, h: float) -> Any:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return call(x, h)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
