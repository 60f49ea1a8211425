"""Chooses a backend for the pairwise operations, and explains why a backend is unavailable."""

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
"""Largest N of csrc/cuda/median_rbf_repulsion.cuh, which needs one launch."""


def why_not(backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Returns why a backend cannot compute on a device and dtype, or None if it can."""
    if backend == "native":
        if native.why_unavailable():
            return native.why_unavailable()
        if not native.has_kernel("rbf_repulsion_kernel", device_type):
            return f"the native library was built without kernels for {device_type}"
        if device_type != "cpu" and dtype == torch.float64:
            return "the GPU kernels take float32, float16 and bfloat16"
    if device_type == "cuda" and not torch.cuda.is_available():
        return "torch sees no GPU"
    if device_type == "cuda" and backend != "reference" and not _has_tensor_cores():
        return "the GPU kernels need sm_80 or later"
    if device_type == "cuda" and backend == "native":
        return _why_no_launch(torch.cuda.current_device())
    if backend == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if find_spec("triton") is None:
            return "triton is not installed"
        if device_type != "cuda" and not interpreted:
            return "triton runs on GPUs (or, with TRITON_INTERPRET=1, in its interpreter)"
        if dtype == torch.float64:
            return "the Triton kernels take float32, float16 and bfloat16"
    return None


def _has_tensor_cores() -> bool:
    """Whether the kernels are written and built for this GPU."""
    return torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)


@cache
def _why_no_launch(device: int) -> str | None:
    """Launches one native kernel on a GPU; returns the error, or None if it runs.

    A library that was built for other GPUs or for another driver loads, but its launches fail.
    """
    x = torch.zeros(2, 1, device=f"cuda:{device}")
    try:
        torch.ops.fastrepulse.rbf_repulsion_kernel(x, x.new_ones(()), None, None)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return f"the native kernels do not run on this GPU: {' '.join(str(error).split())[:100]}"
    return None


def describe(backend: str, device_type: str) -> str:
    """Returns one line: whether a backend computes float32 on a device type, and if not, why."""
    reason = why_not(backend, device_type, torch.float32)
    if reason is None and backend == "native" and device_type == "cpu":
        return f"{device_type}: yes ({native.cpu_capability()})"
    return f"{device_type}: " + ("yes" if reason is None else f"no, {reason}")


def choose(x: Tensor, backend: str) -> str:
    """Returns the backend for a tensor; "auto" gives the fastest available one."""
    if backend == "auto":
        # On a GPU, launches take most of the time for few particles, and the native kernels are
        # twice as fast as Triton's (bench/results/gpu.md). N above 64 has not been timed
        few = x.shape[0] <= MAX_SINGLE_LAUNCH
        order = BACKENDS if x.device.type == "cpu" or few else ("triton", "native", "reference")
        return next(b for b in order if why_not(b, x.device.type, x.dtype) is None)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    reason = why_not(backend, x.device.type, x.dtype)
    if reason:
        raise ValueError(f"backend {backend!r} cannot compute {x.dtype} on {x.device}: {reason}")
    return backend


def rbf_repulsion(
    backend: str, x: Tensor, bandwidth: Tensor, y: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Computes force and similarity in the accumulator's dtype on an available backend."""
    if backend == "reference":
        x, y = widen(x), None if y is None else widen(y)
        return rbf_repulsion_reference(x, bandwidth, y, weights)
    x, y = x.contiguous(), None if y is None else y.contiguous()
    weights = None if weights is None else weights.contiguous()
    if x.device.type != "cpu" or backend != "native":
        # The CPU kernels centre the rows while packing them; the GPU kernels expect centred rows
        offset = (x if y is None else y).mean(dim=0, dtype=torch.float32).to(x.dtype)
        x, y = x - offset, None if y is None else y - offset
    if backend == "native":
        return torch.ops.fastrepulse.rbf_repulsion_kernel(x, bandwidth, y, weights)
    from fastrepulse.triton_kernels import rbf_repulsion_kernel

    return rbf_repulsion_kernel(x, bandwidth, y, weights)


def median_sq_distance(backend: str, x: Tensor, rank: int) -> Tensor:
    """Computes the `rank`-th smallest squared distance in the accumulator's dtype."""
    if backend == "reference":
        return median_sq_distance_reference(widen(x), rank)
    x = x.contiguous()
    if x.device.type != "cpu" or backend != "native":
        x = x - x.mean(dim=0, dtype=torch.float32).to(x.dtype)
    if backend == "native":
        return torch.ops.fastrepulse.median_sq_distance_kernel(x, rank)
    from fastrepulse.triton_kernels import median_sq_distance_kernel

    return median_sq_distance_kernel(x, rank)


def median_rbf_repulsion(backend: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes force, similarity and bandwidth at the median bandwidth.

    The native library does this in one call on the CPU and, for few particles, in one launch on a
    GPU. "auto" prefers that call to any other backend.
    """
    one_call = backend in ("auto", "native") and (
        x.device.type == "cpu" or len(x) <= MAX_SINGLE_LAUNCH
    )
    if one_call and why_not("native", x.device.type, x.dtype) is None:
        return torch.ops.fastrepulse.median_rbf_repulsion_kernel(x.contiguous())
    backend = choose(x, backend)
    median = median_sq_distance(backend, x, median_rank(len(x)))
    bandwidth = bandwidth_from_median(x, median)
    return (*rbf_repulsion(backend, x, bandwidth, None, None), bandwidth)
