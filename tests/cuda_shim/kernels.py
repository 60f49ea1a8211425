"""Calls the CUDA kernels, compiled for the CPU, with the arguments of the operators."""

import ctypes
import math
import subprocess
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

SHIM = Path(__file__).parent
CSRC = SHIM.parents[1] / "csrc"
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def build(folder: Path) -> Path:
    """Compiles the kernels for the CPU; returns the path of the library."""
    library = folder / "cuda_shim.so"
    # No contraction: the sources write out their fused multiply-adds
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
    paths = [f"-I{SHIM}", f"-I{CSRC / 'cuda'}", str(SHIM / "driver.cpp"), "-o", str(library)]
    subprocess.run(["g++", *flags, *paths], check=True)
    return library


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a tensor full of NaN, or of 255 for bytes, so that reads before a write show."""
    return torch.empty(shape, dtype=dtype).fill_(math.nan if dtype.is_floating_point else 255)


class CudaKernels:
    """The operators of csrc/cuda/ops.cu.

    Args:
        library: Path of the library from `build`.
        allocate: Returns a new tensor for an output or a workspace.
    """

    def __init__(
        self,
        library: Path,
        allocate: Callable[[tuple[int, ...], torch.dtype], Tensor] = poisoned,
    ):
        self.library = ctypes.CDLL(str(library))
        for name in ("rbf_repulsion", "median_sq_distance", "median_rbf_repulsion"):
            getattr(self.library, f"{name}_workspace").restype = c_int64
        self.library.median_rbf_repulsion_blocks.restype = c_int64
        self.allocate = allocate

    def set_seed(self, seed: int) -> None:
        """Sets the seed of the order in which threads and blocks run."""
        self.library.set_seed(seed)

    def rbf_repulsion(
        self,
        x: Tensor,
        bandwidth: Tensor,
        y: Tensor | None = None,
        weights: Tensor | None = None,
        panel_columns: int = 8192,
    ) -> tuple[Tensor, Tensor]:
        columns = x if y is None else y
        (n, d), m = x.shape, len(columns)
        workspace = self._floats(self.rbf_repulsion_workspace(n, m, d, panel_columns))
        force, similarity = self._floats(n, d), self._floats(n)
        self.library.rbf_repulsion(
            DTYPES[x.dtype],
            *_pointers(x, columns, weights, bandwidth),
            *_sizes(n, m, d, panel_columns),
            *_pointers(force, similarity, workspace),
        )
        return force, similarity

    def rbf_repulsion_workspace(self, n: int, m: int, d: int, panel_columns: int = 8192) -> int:
        return self.library.rbf_repulsion_workspace(*_sizes(n, m, d, panel_columns))

    def median_sq_distance(self, x: Tensor, rank: int) -> Tensor:
        size = self.median_sq_distance_workspace(*x.shape)
        workspace, value = self.allocate((size,), torch.uint8), self._floats()
        self.library.median_sq_distance(
            DTYPES[x.dtype], *_pointers(x), *_sizes(*x.shape, rank), *_pointers(workspace, value)
        )
        return value

    def median_sq_distance_workspace(self, n: int, d: int) -> int:
        return self.library.median_sq_distance_workspace(*_sizes(n, d))

    def median_rbf_repulsion(
        self,
        x: Tensor,
        capacity: int = 3,  # blocks that run at once; 3 stands for a very small GPU
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, d = x.shape
        blocks = self.library.median_rbf_repulsion_blocks(*_sizes(d, capacity))
        workspace = self._floats(self.library.median_rbf_repulsion_workspace(*_sizes(n, blocks)))
        outputs = self._floats(n, d), self._floats(n), self._floats()
        self.library.median_rbf_repulsion(
            DTYPES[x.dtype],
            *_pointers(x),
            *_sizes(n, d, blocks),
            *_pointers(workspace, *outputs),
        )
        return outputs

    def _floats(self, *shape: int) -> Tensor:
        return self.allocate(shape, torch.float32)


def _pointers(*tensors: Tensor | None) -> list[c_void_p]:
    return [c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def _sizes(*sizes: int) -> list[c_int64]:
    return [c_int64(size) for size in sizes]
