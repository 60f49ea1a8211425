"""How large the tiles are: one table for every kernel, kind of input and family of devices."""

from dataclasses import dataclass
from functools import cache

import torch
import triton


@dataclass(frozen=True)
class Tile:
    """The shape of one program and the resources that it asks for."""

    rows: int
    columns: int
    # Of d: what is multiplied at a time, or, where a force is made, the width of its chunk
    depth: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int | bool]:
        """Returns the entry as the keyword arguments of a launch."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DEPTH": self.depth,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            # Triton's default, which is about to change: fused multiply-adds
            "enable_fp_fusion": True,
        }


# No entry spills registers (tests/test_gpu_static.py). Those of sm_80 need at most 99 KB of shared
# memory, so that sm_86, sm_89 and sm_120 take them too. Where a width has no entry, whole rows do
# not fit a program's registers: they go by panels.
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
# TF32's 11 bits will not do. NVIDIA's tensor cores reach 22 in three products; Triton's "ieee"
# would leave them idle, and spill. AMD's matrix cores multiply float32 as it is.
PRECISIONS = {"sm_80": "tf32x3", "sm_90": "tf32x3", "sm_100": "tf32x3", "gfx942": "ieee"}

# Two times as many numbers, of 4 bytes each, are the most that is stored beside the result: 64 MB
WORKSPACE = 2**23


@cache
def architecture(device: torch.device) -> str:
    """Returns the family, a key of `TILES`, to which a device belongs."""
    # The CPU is Triton's interpreter, which is the faster the larger the tiles
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
    """Returns how many multiprocessors a device has to keep busy."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def share_out(total: int, step: int, programs: int, most: int) -> tuple[int, int]:
    """Returns how many programs share something out, and how much of it each one has.

    What they find is added up afterwards in a fixed order: the result is the same every time.

    Args:
        total: Of what is shared.
        step: What a share is a multiple of.
        programs: How many would keep the device busy.
        most: How many the workspace has room for.
    """
    shares = min(programs, triton.cdiv(total, step), max(1, most))
    share = triton.cdiv(triton.cdiv(total, shares), step) * step
    return triton.cdiv(total, share), share


def tiles_for(x: torch.Tensor) -> dict[str, Tile]:
    """Returns the tile of each kernel for the dtype and device of `x`."""
    return TILES[architecture(x.device)]["float" if x.dtype == torch.float32 else "half"]


def precision_for(x: torch.Tensor) -> str:
    """Returns the `input_precision` of `tl.dot` for the device of `x`."""
    return PRECISIONS[architecture(x.device)]
