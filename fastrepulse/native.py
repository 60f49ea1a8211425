"""The native library: the C++ kernels and, where it was built with nvcc, the CUDA kernels."""

from functools import cache
from pathlib import Path

import torch


@cache
def why_unavailable() -> str | None:
    """Loads the library once; returns None on success, else the reason for the failure."""
    folder = Path(__file__).parent
    built = sorted(folder.glob("_native*.so"))
    if not built:
        failed = folder / "_native_build_failed.txt"  # written by setup.py
        reason = failed.read_text().strip() if failed.exists() else "no compiler ran"
        return (
            f"the native library was not built ({reason}); "
            "pip install -v --no-build-isolation . builds it and shows the compiler's messages"
        )
    try:
        torch.ops.load_library(str(built[0]))
    except OSError as error:
        return f"the native library does not load: {error.__cause__ or error}"
    return None


def has_kernel(name: str, device_type: str) -> bool:
    """Whether the library has a kernel for a device type ("cpu", "cuda")."""
    if why_unavailable():
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        f"fastrepulse::{name}", device_type.upper()
    )


def serves(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the library has a kernel for float32 tensors on the CPU."""
    return device.type == "cpu" and dtype == torch.float32 and has_kernel(name, "cpu")


def cpu_capability() -> str:
    """Returns the instruction set that the CPU kernels run on: "baseline", "avx2" or "avx512".

    Raises:
        RuntimeError: If the library is not available.
    """
    reason = why_unavailable()
    if reason:
        raise RuntimeError(reason)
    return torch.ops.fastrepulse.cpu_capability()
