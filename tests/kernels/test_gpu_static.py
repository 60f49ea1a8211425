"""Every entry of the tile table, compiled for devices that are not here and read.

The analysis lives in bench/, which makes the table of it: no part of the package needs it.
"""

import pytest

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget

from helpers.benchmarks import import_bench

static_analysis = import_bench("kernels.static_analysis")
TARGETS, entries = static_analysis.TARGETS, static_analysis.entries

# Bytes a program; sm_80's is what the smaller devices have that take its entries
SHARED = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# Of a program, over 32 (on gfx942, 64) threads: 64 Ki a multiprocessor (512 a lane of four SIMDs)
REGISTERS = 2048
MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}

# Older compilers (3.6 was tried) count a histogram in more registers than a thread has
OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
SPILLS_OF_OLD, STACK_OF_OLD = 32, 64

# Compiled every time, on every architecture; the rest is slow
QUICK = {"bf16-fused_64", "bf16-panel", "fp32-fused_64", "fp32-multiply", "fp16-histogram"}


def cases():
    for entry in entries():
        quick = f"{entry.dtype}-{entry.kernel}" in QUICK
        marks = () if quick else pytest.mark.slow
        yield pytest.param(entry, True, id=f"{entry}-everything", marks=marks)
        yield pytest.param(entry, False, id=f"{entry}", marks=pytest.mark.slow)


@pytest.mark.parametrize(("entry", "everything"), list(cases()))
def test_an_entry_spills_nothing_and_multiplies_on_matrix_units(entry, everything):
    resources = static_analysis.analyse(entry, everything)
    spills, stack = (SPILLS_OF_OLD, STACK_OF_OLD) if OLD and entry.kernel == "histogram" else (0, 0)
    assert resources.spills <= spills and resources.stack <= stack
    assert resources.registers * entry.tile.num_warps <= REGISTERS
    assert resources.shared <= SHARED[entry.architecture]
    assert set(resources.matrix) == {MATRIX[entry.architecture]}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 89, 120])
@pytest.mark.parametrize("entry", [e for e in entries() if e.architecture == "sm_80"], ids=str)
def test_smaller_devices_take_the_entries_of_sm_80(entry, capability):
    resources = static_analysis.analyse(
        entry, everything=True, target=GPUTarget("cuda", capability, 32)
    )
    assert resources.spills == 0 and resources.stack == 0
    assert resources.shared <= SHARED["sm_80"]


def test_every_architecture_has_the_kernels_for_every_dtype():
    every = {str(entry) for entry in entries()}
    for architecture in TARGETS:
        for dtype in ("bf16", "fp16", "fp32"):
            for kernel in ("fused_64", "panel", "multiply", "histogram"):
                assert f"{architecture}-{dtype}-{kernel}" in every
