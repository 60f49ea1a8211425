"""Compiles the Triton kernels without the devices and reads the generated code.

tests/kernels/test_gpu_static.py checks thresholds, and gpu_static.py makes a table.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastrepulse.triton_kernels.fused import fused_kernel
from fastrepulse.triton_kernels.median_sq_distance import BINS, histogram_kernel
from fastrepulse.triton_kernels.panels import multiply_kernel, panel_kernel
from fastrepulse.triton_kernels.tiles import PRECISIONS, TILES, Tile

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = {
    "fused": fused_kernel,
    "panel": panel_kernel,
    "multiply": multiply_kernel,
    "histogram": histogram_kernel,
}
DTYPES = {"bf16": "half", "fp16": "half", "fp32": "float"}
# Integers that every launch passes as multiples of 16
ALIGNED = ("d", "columns_per_split", "columns_per_part", "depth_per_split")
ALIGNED += ("panel_rows", "panel_columns")
CUDA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Entry:
    """One kernel of the tile table, for one architecture and dtype."""

    architecture: str
    dtype: str
    kernel: str

    @property
    def tile(self) -> Tile:
        return TILES[self.architecture][DTYPES[self.dtype]][self.kernel]

    def __str__(self) -> str:
        return f"{self.architecture}-{self.dtype}-{self.kernel}"


@dataclass(frozen=True)
class Resources:
    """Resources and matrix instructions of one compiled kernel."""

    # 32-bit registers per thread
    registers: int
    # Bytes per thread
    stack: int
    # Instructions (registers on AMD) that go through memory because registers ran out
    spills: int
    # Bytes per program
    shared: int
    # Counts of tensor-core or matrix-core instructions, by name
    matrix: dict[str, int]


def entries() -> Iterator[Entry]:
    """Yields every entry of the tile table, for every dtype that uses it."""
    for architecture, kinds in TILES.items():
        for dtype, kind in DTYPES.items():
            for kernel in kinds[kind]:
                yield Entry(architecture, dtype, kernel)


def analyse(entry: Entry, everything: bool = False, target: GPUTarget | None = None) -> Resources:
    """Compiles an entry, without driver or device, and returns its resources.

    With `everything`, the variant with weights, a panel split over d, and addition to previous
    panels. `target` is another device that uses the architecture's entries.
    """
    options = entry.tile.options()
    function = KERNELS[entry.kernel.split("_")[0]]
    given = {
        **{"SELF": True, "SPLIT": everything, "ADD": everything, "BINS": BINS},
        **({} if everything else {"p_weights": None}),
        **{"PRECISION": PRECISIONS[entry.architecture]},
        **options,
    }
    constants = {name: given[name] for name in function.arg_names if name in given}
    signature = {name: _type(name, entry.dtype) for name in function.arg_names}
    if everything and "p_panel" in signature:
        signature["p_panel"] = "*fp32"
    signature |= dict.fromkeys(constants, "constexpr")
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(function.arg_names)
        if name not in constants and (name.startswith("p_") or name in ALIGNED)
    }
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=target or TARGETS[entry.architecture],
        options={name: value for name, value in options.items() if name.islower()},
    )
    read = _read_amdgcn if "amdgcn" in compiled.asm else _read_cubin
    return read(compiled.asm, compiled.metadata.shared)


def _type(name: str, dtype: str) -> str:
    if not name.startswith("p_"):
        return "i32"
    return "*" + {"p_x": dtype, "p_y": dtype, "p_panel": dtype, "p_prefix": "i32"}.get(
        name, "i64" if name == "p_counts" else "fp32"
    )


def _read_cubin(asm: dict, shared: int) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        sass = _output("nvdisasm", "-c", file.name)
    return Resources(
        registers=_number(r"REG:(\d+)", usage),
        stack=_number(r"STACK:(\d+)", usage),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=shared,
        matrix=Counter(re.findall(r"\b(HMMA|HGMMA|UTC[A-Z]*MMA)\b", sass)),
    )


def _read_amdgcn(asm: dict, shared: int) -> Resources:
    text = asm["amdgcn"]
    return Resources(
        registers=_number(r"\.vgpr_count: +(\d+)", text),
        stack=_number(r"\.private_segment_fixed_size: +(\d+)", text),
        spills=_number(r"\.vgpr_spill_count: +(\d+)", text),
        shared=shared,
        matrix=Counter(re.findall(r"\b(v_mfma)_", text)),
    )


def _output(tool: str, *arguments: str) -> str:
    command = [str(CUDA_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    (number,) = re.findall(pattern, text)
    return int(number)
