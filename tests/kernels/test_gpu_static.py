"""Compiles every entry of the tile table for GPUs that need not be present, and checks the code.

The analysis is in bench/, which also makes a table of it; the package does not need it.
"""

import pytest

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget

from helpers.checkout import import_from_checkout

static_analysis = import_from_checkout("bench.kernels.static_analysis")
TARGETS, entries = static_analysis.TARGETS, static_analysis.entries

# Bytes per program. Smaller devices with 99 KB use the entries of sm_80 too
SHARED = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# Per program, divided by 32 threads (64 on gfx942): 64 Ki per multiprocessor (on gfx942, 512 per
# lane of four SIMDs)
REGISTERS = 2048
MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}

# Older compilers (3.6 was tried) spill registers in the histogram kernel
OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
SPILLS_OF_OLD, STACK_OF_OLD = 32, 64

# Entries compiled in every test run, on every architecture; the others are marked slow
QUICK = {"bf16-fused_64", "bf16-panel", "fp32-fused_64", "fp32-multiply", "fp16-histogram"}


def cases():
    for entry in entries():
        quick = f"{entry.dtype}-{entry.kernel}" in QUICK
        marks = () if quick else pytest.mark.slow
        yield pytest.param(entry, True, id=f"{entry}-everything", marks=marks)
        yield pytest.param(entry, False, id=f"{entry}", marks=pytest.mark.slow)


@pytest.mark.parametrize(("entry", "everything"), list(cases()))
def test_an_entry_has_no_spills_and_uses_matrix_units(entry, everything):
    resources = static_analysis.analyse(entry, everything)
    spills, stack = (SPILLS_OF_OLD, STACK_OF_OLD) if OLD and entry.kernel == "histogram" else (0, 0)
    assert resources.spills <= spills and resources.stack <= stack
    assert resources.registers * entry.tile.num_warps <= REGISTERS
    assert resources.shared <= SHARED[entry.architecture]
    assert set(resources.matrix) == {MATRIX[entry.architecture]}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 89, 120])
@pytest.mark.parametrize("entry", [e for e in entries() if e.architecture == "sm_80"], ids=str)
def test_smaller_devices_can_use_the_entries_of_sm_80(entry, capability):
    resources = static_analysis.analyse(
        entry, everything=True, target=GPUTarget("cuda", capability, 32)
    )
    assert resources.spills == 0 and resources.stack == 0
    assert resources.shared <= SHARED["sm_80"]


def test_every_architecture_has_every_kernel_and_dtype():
    every = {str(entry) for entry in entries()}
    for architecture in TARGETS:
        for dtype in ("bf16", "fp16", "fp32"):
            for kernel in ("fused_64", "panel", "multiply", "histogram"):
                assert f"{architecture}-{dtype}-{kernel}" in every
