"""What can compute the pairwise operations here, and why the rest cannot."""

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from fastrepulse import native
from fastrepulse.kernels.reference import (
    bandwidth_from_median,
    median_rank,
    median_sq_distance_reference,
    rbf_repulsion_reference,
    widen,
)

BACKENDS = ("native", "triton", "reference")
MAX_SINGLE_LAUNCH = 128
"""The most particles of csrc/cuda/median_rbf_repulsion.cuh."""


def why_not(backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Returns None if a backend serves a device and dtype, else the reason why not."""
    if backend == "native":
        if native.why_unavailable():
            return native.why_unavailable()
        if not native.has_kernel("rbf_repulsion_kernel", device_type):
            return f"the native library was built without kernels for {device_type}"
        if device_type != "cpu" and dtype == torch.float64:
            return "its GPU kernels take float32, float16 and bfloat16"
    if device_type == "cuda" and not torch.cuda.is_available():
        return "torch sees no GPU"
    if device_type == "cuda" and backend != "reference" and not _has_tensor_cores():
        return "its GPU kernels need sm_80 or later"
    if device_type == "cuda" and backend == "native":
        return _why_no_launch(torch.cuda.current_device())
    if backend == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if find_spec("triton") is None:
            return "triton is not installed"
        if device_type != "cuda" and not interpreted:
            return "triton runs on GPUs (or, with TRITON_INTERPRET=1, in its interpreter)"
        if dtype == torch.float64:
            return "its kernels take float32, float16 and bfloat16"
    return None


def _has_tensor_cores() -> bool:
    """Says whether the GPU is one that the kernels are written and built for."""
    return torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)


@cache
def _why_no_launch(device: int) -> str | None:
    """Launches a kernel of the native library on a GPU, once; returns why that cannot be done.

    A library that was built for other GPUs, or beside another driver, is there and fails.
    """
    x = torch.zeros(2, 1, device=f"cuda:{device}")
    try:
        torch.ops.fastrepulse.rbf_repulsion_kernel(x, x.new_ones(()), None, None)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return f"its kernels do not run on this GPU: {' '.join(str(error).split())[:100]}"
    return None


def describe(backend: str, device_type: str) -> str:
    """Says in one line whether a backend serves a kind of device in float32, and if not, why."""
    reason = why_not(backend, device_type, torch.float32)
    if reason is None and backend == "native" and device_type == "cpu":
        return f"{device_type}: yes ({native.cpu_capability()})"
    return f"{device_type}: " + ("yes" if reason is None else f"no, {reason}")


def choose(x: Tensor, backend: str) -> str:
    """Returns the backend for a tensor: the one asked for, or for "auto" the fastest that serves.

    Raises:
        ValueError: If the backend asked for is unknown or cannot serve.
    """
    if backend == "auto":
        # On a GPU few particles are a matter of launches: native is twice as fast as Triton there
        # (bench/results/gpu.md). For many nobody has measured it
        few = x.shape[0] <= MAX_SINGLE_LAUNCH
        order = BACKENDS if x.device.type == "cpu" or few else ("triton", "native", "reference")
        return next(b for b in order if why_not(b, x.device.type, x.dtype) is None)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    reason = why_not(backend, x.device.type, x.dtype)
    if reason:
        raise ValueError(f"backend {backend!r} cannot serve {x.dtype} on {x.device}: {reason}")
    return backend


def rbf_repulsion(
    backend: str, x: Tensor, bandwidth: Tensor, y: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Computes force and similarity in the accumulator's dtype, by a backend that serves."""
    if backend == "reference":
        x, y = widen(x), None if y is None else widen(y)
        return rbf_repulsion_reference(x, bandwidth, y, weights)
    x, y = x.contiguous(), None if y is None else y.contiguous()
    weights = None if weights is None else weights.contiguous()
    if x.device.type == "cpu" and backend == "native":
        return torch.ops.fastrepulse.rbf_repulsion_kernel(x, bandwidth, y, weights)
    # The GPU's kernels do not centre; on the CPU that is done while packing
    offset = (x if y is None else y).mean(dim=0, dtype=torch.float32).to(x.dtype)
    x, y = x - offset, None if y is None else y - offset
    if backend == "native":
        return torch.ops.fastrepulse.rbf_repulsion_kernel(x, bandwidth, y, weights)
    from fastrepulse.triton_kernels import rbf_repulsion_kernel

    return rbf_repulsion_kernel(x, bandwidth, y, weights)


def median_sq_distance(backend: str, x: Tensor, rank: int) -> Tensor:
    """Computes the distance of a rank in the accumulator's dtype, by a backend that serves."""
    if backend == "reference":
        return median_sq_distance_reference(widen(x), rank)
    x = x.contiguous()
    if x.device.type == "cpu" and backend == "native":
        return torch.ops.fastrepulse.median_sq_distance_kernel(x, rank)
    x = x - x.mean(dim=0, dtype=torch.float32).to(x.dtype)
    if backend == "native":
        return torch.ops.fastrepulse.median_sq_distance_kernel(x, rank)
    from fastrepulse.triton_kernels import median_sq_distance_kernel

    return median_sq_distance_kernel(x, rank)


def median_rbf_repulsion(backend: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes force, similarity and bandwidth at the median bandwidth, natively in one call.

    The backend may be "auto": few on a GPU are a launch that is faster than any, whatever is
    chosen for more.
    """
    if backend in ("auto", "native") and _is_one_call(x):
        return torch.ops.fastrepulse.median_rbf_repulsion_kernel(x.contiguous())
    backend = choose(x, backend)
    median = median_sq_distance(backend, x, median_rank(len(x)))
    bandwidth = bandwidth_from_median(x, median)
    return (*rbf_repulsion(backend, x, bandwidth, None, None), bandwidth)


def _is_one_call(x: Tensor) -> bool:
    serves = why_not("native", x.device.type, x.dtype) is None
    return serves and (x.device.type == "cpu" or x.shape[0] <= MAX_SINGLE_LAUNCH)
