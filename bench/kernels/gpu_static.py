"""Resources of every compiled Triton kernel by GPU family, and a roofline model of its time.

Needs no GPU and runs nothing on one.

    python -m bench.kernels.gpu_static
"""

from dataclasses import dataclass
from pathlib import Path

import triton

from bench.kernels.static_analysis import Entry, Resources, analyse, entries

RESULTS = Path(__file__).parents[1] / "results"

# Particles in the model, and d for kernels that take any d
N, WIDE = 16_384, 2_048


@dataclass(frozen=True)
class Peaks:
    """Published peak rates of one device."""

    name: str
    half: float  # FLOP/s of the matrix units in 16 bits
    float32: float  # FLOP/s of the matrix units in TF32, or in float32 on AMD
    exponentials: float  # per second: 16 per clock and multiprocessor
    bandwidth: float  # bytes/s of device memory


PEAKS = {
    "sm_80": Peaks("A100 SXM 80 GB", 312e12, 156e12, 16 * 108 * 1.41e9, 2.039e12),
    "sm_90": Peaks("H100 SXM", 989.4e12, 494.7e12, 16 * 132 * 1.83e9, 3.35e12),
    "sm_100": Peaks("B200", 2250e12, 1125e12, 16 * 148 * 1.86e9, 8e12),
    "gfx942": Peaks("MI300X", 1307.4e12, 163.4e12, 16 * 304 * 2.1e9, 5.3e12),
}

HEADER = """# What the Triton kernels compile to

Compiled with triton {version} without the devices; nothing was run on a GPU. Registers are counted
per thread (vector registers on gfx942) and shared memory per program. Matrix instructions are
counted in the code. A spill is an instruction (on AMD, a register) that goes through memory. Widths
without a `fused` entry use `panel` and `multiply`. `python -m bench.kernels.gpu_static` makes this
file, and `tests/kernels/test_gpu_static.py` holds the figures to thresholds.

**The last two columns are a model, not a measurement.** It has N = {n:,} particles and the d in the
kernel's name, or {wide:,}. The modelled time is the longest of these three:

- matrix products without padding: 2 N² d FLOP each, two in `fused` and one in the others. One of
  the three passes of `histogram` is counted, over half of the pairs. On NVIDIA, float32 takes three
  TF32 products;
- exponentials: N² in `fused` and `panel`, at 16 per clock and multiprocessor;
- device memory: each input and output once, and the weights in `panel` and `multiply`.

The peak rates are:

{peaks}

These are the dense peaks commonly published for the devices, checked against public comparison
tables but not against the vendors' data sheets. NVIDIA states 16 exponentials per clock for its
multiprocessors; for the MI300X this is an assumption. The model leaves out latency, caches and the
arithmetic between the products. In `histogram` it leaves out a count of every pair in shared memory
and 2,048 atomic additions per program to device memory. Expect a multiple of the modelled time.

| architecture | dtype | kernel | tile | warps | stages | registers | stack | spills | shared | \
matrix instructions | modelled time | bound by |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def model(entry: Entry) -> tuple[float, str]:
    """Returns an entry's modelled time in seconds and the resource that limits it."""
    peaks = PEAKS[entry.architecture]
    kernel, _, width = entry.kernel.partition("_")
    d = int(width or WIDE)
    size = 4 if entry.dtype == "fp32" else 2
    products = {"fused": 2, "histogram": 0.5}.get(kernel, 1)
    thrice = 3 if entry.dtype == "fp32" and entry.architecture != "gfx942" else 1
    rate = peaks.float32 if entry.dtype == "fp32" else peaks.half
    # Bytes of the inputs, the force, and the weights between `panel` and `multiply`
    traffic = {
        "fused": N * d * (size + 4),
        "panel": N * d * size + N * N * size,
        "multiply": N * d * (size + 4) + N * N * size,
        "histogram": N * d * size,
    }[kernel]
    seconds = {
        "products": thrice * products * 2 * N * N * d / rate,
        "exponentials": (N * N if kernel in ("fused", "panel") else 0) / peaks.exponentials,
        "memory": traffic / peaks.bandwidth,
    }
    slowest = max(seconds, key=lambda cause: seconds[cause])
    return seconds[slowest], slowest


def row(entry: Entry, resources: Resources) -> str:
    """Returns one row of the table."""
    tile = entry.tile
    seconds, slowest = model(entry)
    matrix = ", ".join(f"{count} {name}" for name, count in resources.matrix.items())
    cells = (
        *(entry.architecture, entry.dtype, entry.kernel),
        *(f"{tile.rows}×{tile.columns}×{tile.depth}", tile.num_warps, tile.num_stages),
        *(resources.registers, resources.stack, resources.spills, f"{resources.shared:,}"),
        *(matrix, f"{1e3 * seconds:.3g} ms", slowest),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    peaks = "\n".join(
        f"- {family}: {p.name}, {p.half / 1e12:g} TFLOP/s in 16 bits and {p.float32 / 1e12:g} in "
        f"{'float32' if family == 'gfx942' else 'TF32'}, {p.bandwidth / 1e12:g} TB/s, "
        f"{p.exponentials / 1e12:.1f}·10¹² exponentials a second"
        for family, p in PEAKS.items()
    )
    header = HEADER.format(version=triton.__version__, n=N, wide=WIDE, peaks=peaks)
    table = "\n".join(row(entry, analyse(entry)) for entry in entries())
    (RESULTS / "gpu_static.md").write_text(f"{header}{table}\n")
    print(f"wrote {RESULTS / 'gpu_static.md'}")


if __name__ == "__main__":
    main()
