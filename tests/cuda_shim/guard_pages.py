"""Runs every kernel on tensors that end or begin at a page without access.

Usage: guard_pages.py LIBRARY. Each combination of operator, side of the page and number of
elements of x inside the page runs in a process of its own. The program writes a line for each: the
operator, the side, the number of elements and the signal that ended the process, 0 if none did.
With an element inside the page, a kernel that reads all of x must end in a segmentation fault.
"""

import ctypes
import math
import mmap
import os
import sys
from pathlib import Path

import torch
from kernels import CudaKernels
from torch import Tensor

SHAPES = [(2, 1), (3, 16), (17, 63), (65, 33), (17, 130)]
LIBC = ctypes.CDLL(None, use_errno=True)


def guarded(shape: tuple[int, ...], dtype: torch.dtype, side: str, missing: int = 0) -> Tensor:
    """Returns memory for a tensor between two pages without access, at the edge of one of them.

    With `missing` elements inside that page.
    """
    size = math.prod(shape) * dtype.itemsize
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for guard in (start, start + mmap.PAGESIZE + pages):
        if LIBC.mprotect(ctypes.c_void_p(guard), mmap.PAGESIZE, 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    inwards = missing * dtype.itemsize
    first = mmap.PAGESIZE + (pages - size + inwards if side == "behind" else -inwards)
    return torch.frombuffer(region, dtype=torch.uint8)[first : first + size].view(dtype).view(shape)


def draw(shape: tuple[int, ...], dtype: torch.dtype, side: str, missing: int = 0) -> Tensor:
    tensor = guarded(shape, dtype, side, missing)
    flat = tensor.view(-1)
    (flat[: len(flat) - missing] if side == "behind" else flat[missing:]).normal_()
    return tensor


def run(library: str, operator: str, side: str, missing: int) -> None:
    """Runs an operator for several shapes and dtypes."""
    kernels = CudaKernels(Path(library), lambda shape, dtype: guarded(shape, dtype, side))
    for n, d in SHAPES:
        for dtype in (torch.float32, torch.float16):
            x = draw((n, d), dtype, side, missing)
            if operator == "rbf_repulsion":
                bandwidth = guarded((), torch.float32, side).fill_(d)
                y, weights = draw((n + 5, d), dtype, side), draw((n + 5,), torch.float32, side)
                kernels.rbf_repulsion(x, bandwidth)
                kernels.rbf_repulsion(x, bandwidth, y, weights)
            elif operator == "median_sq_distance":
                kernels.median_sq_distance(x, n * (n - 1) // 4)
            else:
                kernels.median_rbf_repulsion(x)


def main(library: str) -> None:
    for operator in ("rbf_repulsion", "median_sq_distance", "median_rbf_repulsion"):
        for side in ("before", "behind"):
            for missing in (0, 1):
                if not (child := os.fork()):
                    run(library, operator, side, missing)
                    os._exit(0)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                print(operator, side, missing, -status, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
