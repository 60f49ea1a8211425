"""The native library: the C++ kernels and, where it was built with nvcc, the CUDA kernels."""

from functools import cache
from pathlib import Path

import torch


@cache
def why_unavailable() -> str | None:
    """Loads the library once; returns None if that worked, else the reason why not."""
    built = sorted(Path(__file__).parent.glob("_native*.so"))
    if not built:
        return "the native library was not built; a C++ compiler builds it on installation"
    try:
        torch.ops.load_library(str(built[0]))
    except OSError as error:
        return f"the native library does not load: {error.__cause__ or error}"
    return None


def has_kernel(name: str, device_type: str) -> bool:
    """Says whether the library has a kernel for a kind of device ("cpu", "cuda")."""
    if why_unavailable():
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        f"fastrepulse::{name}", device_type.upper()
    )


def serves(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Says whether a CPU kernel, which takes float32 alone, computes tensors of a device."""
    return device.type == "cpu" and dtype == torch.float32 and has_kernel(name, "cpu")


def cpu_capability() -> str:
    """Returns the instruction set that the CPU kernels run on: "baseline", "avx2" or "avx512".

    Raises:
        RuntimeError: If there is no library.
    """
    reason = why_unavailable()
    if reason:
        raise RuntimeError(reason)
    return torch.ops.fastrepulse.cpu_capability()
