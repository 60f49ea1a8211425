"""Tile sizes: one table by device family, input dtype and kernel."""

from dataclasses import dataclass
from functools import cache

import torch
import triton


@dataclass(frozen=True)
class Tile:
    """The tile of one program, and its warps and pipeline stages."""

    rows: int
    columns: int
    # Dimensions multiplied at a time; in kernels that write a force, the width of its chunk
    depth: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int | bool]:
        """Returns the keyword arguments of a launch."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DEPTH": self.depth,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            # Fused multiply-adds. They are Triton's default today, but the default will change
            "enable_fp_fusion": True,
        }


# No entry spills registers (tests/kernels/test_gpu_static.py). The entries of sm_80 need at most
# 99 KB of shared memory, so they also serve sm_86, sm_89 and sm_120. Rows of a width without a
# `fused` entry do not fit in a program's registers and go through `panel` and `multiply`.
TILES = {
    "sm_80": {
        "half": {
            "fused_64": Tile(128, 64, 64, 8, 3),
            "fused_128": Tile(128, 64, 128, 8, 2),
            "fused_256": Tile(64, 32, 256, 8, 2),
            "panel": Tile(128, 128, 64, 8, 3),
            "multiply": Tile(64, 64, 128, 8, 2),
            "histogram": Tile(128, 128, 32, 8, 3),
        },
        "float": {
            "fused_64": Tile(32, 32, 64, 4, 2),
            "panel": Tile(64, 64, 32, 4, 3),
            "multiply": Tile(64, 32, 64, 4, 3),
            "histogram": Tile(64, 32, 32, 4, 3),
        },
    },
    "sm_90": {
        "half": {
            "fused_64": Tile(128, 64, 64, 4, 3),
            "fused_128": Tile(128, 64, 128, 8, 2),
            "fused_256": Tile(64, 64, 256, 8, 2),
            "panel": Tile(128, 128, 64, 8, 3),
            "multiply": Tile(128, 64, 128, 8, 3),
            "histogram": Tile(128, 64, 64, 8, 3),
        },
        "float": {
            "fused_64": Tile(128, 32, 64, 8, 2),
            "panel": Tile(128, 64, 32, 8, 2),
            "multiply": Tile(64, 32, 128, 8, 2),
            "histogram": Tile(64, 64, 32, 8, 3),
        },
    },
    "sm_100": {
        "half": {
            "fused_64": Tile(128, 64, 64, 8, 3),
            "fused_128": Tile(128, 64, 128, 8, 2),
            "fused_256": Tile(128, 64, 256, 8, 2),
            "panel": Tile(128, 128, 64, 8, 3),
            "multiply": Tile(128, 64, 128, 8, 3),
            "histogram": Tile(128, 64, 64, 8, 3),
        },
        "float": {
            "fused_64": Tile(64, 32, 64, 8, 2),
            "fused_128": Tile(64, 32, 128, 8, 2),
            "panel": Tile(128, 128, 32, 8, 2),
            "multiply": Tile(128, 32, 128, 8, 2),
            "histogram": Tile(64, 64, 32, 8, 3),
        },
    },
    "gfx942": {
        "half": {
            "fused_64": Tile(64, 64, 64, 4, 2),
            "fused_128": Tile(64, 32, 128, 4, 2),
            "fused_256": Tile(64, 32, 256, 4, 2),
            "panel": Tile(128, 128, 64, 8, 2),
            "multiply": Tile(128, 64, 128, 8, 2),
            "histogram": Tile(128, 128, 32, 8, 2),
        },
        "float": {
            "fused_64": Tile(64, 32, 64, 4, 2),
            "fused_128": Tile(32, 32, 128, 4, 2),
            "panel": Tile(128, 128, 32, 4, 2),
            "multiply": Tile(64, 32, 128, 4, 2),
            "histogram": Tile(64, 64, 32, 4, 2),
        },
    },
}

# How tl.dot multiplies float32. A squared distance is a small difference of large numbers, so
# TF32's 11 bits are too few. NVIDIA's tensor cores reach 22 bits with three products. Triton's
# "ieee" would not use the tensor cores and would spill. AMD's matrix cores multiply full float32.
PRECISIONS = {"sm_80": "tf32x3", "sm_90": "tf32x3", "sm_100": "tf32x3", "gfx942": "ieee"}

# Temporary memory is at most 2 * WORKSPACE numbers of 4 bytes: 64 MB
WORKSPACE = 2**23


@cache
def architecture(device: torch.device) -> str:
    """Returns the device's family, a key of `TILES`."""
    # On the CPU Triton interprets, which is faster with larger tiles
    if device.type == "cpu":
        return "sm_100"
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise RuntimeError(f"the Triton kernels need sm_80 or later, got sm_{major}{minor}")
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


@cache
def multiprocessors(device: torch.device) -> int:
    """Returns the number of multiprocessors of a device."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def split_work(total: int, step: int, programs: int, max_parts: int) -> tuple[int, int]:
    """Splits work between programs; returns the number of parts and the size of each.

    The parts' results are summed afterwards in a fixed order, so every run gives the same result.

    Args:
        total: Amount of work, in columns or dimensions.
        step: The size of a part is a multiple of this.
        programs: Number of programs that keep the device busy.
        max_parts: Number of parts that fit in the workspace.
    """
    parts = min(programs, triton.cdiv(total, step), max(1, max_parts))
    size = triton.cdiv(triton.cdiv(total, parts), step) * step
    return triton.cdiv(total, size), size


def tiles_for(x: torch.Tensor) -> dict[str, Tile]:
    """Returns the tile of each kernel for the dtype and device of `x`."""
    return TILES[architecture(x.device)]["float" if x.dtype == torch.float32 else "half"]


def precision_for(x: torch.Tensor) -> str:
    """Returns the `input_precision` of `tl.dot` for the device of `x`."""
    return PRECISIONS[architecture(x.device)]
