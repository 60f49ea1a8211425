"""Makes tables and plots from the timings of `bench_kernels.py`, and measures memory.

python -m bench.kernels.report timings.json timings-avx2.json
"""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from bench.common import label_shapes, read_timings
from bench.kernels.providers import FORCE, Provider

RESULTS = Path(__file__).parents[1] / "results"
MEMORY_SIZES = [1000, 2000, 4000, 8000, 16_000, 32_000, 64_000]
MEMORY_DIM = 64
OURS = "fastrepulse"
TITLES = {"baseline": "Baseline", "avx2": "AVX2", "avx512": "AVX-512"}

matplotlib.use("agg")


def peak_memory(provider: Provider) -> dict[int, float]:
    """Returns the peak memory that a call adds to its process, in bytes, by N. Linux only.

    A first call with 100 particles is not measured, because it loads libraries.
    """
    sizes = [n for n in MEMORY_SIZES if provider.can_run(n, MEMORY_DIM)]
    program = f"""
import sys, torch
sys.path.insert(0, sys.argv[1])
from bench.kernels.providers import FORCE

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

provider = next(p for p in FORCE if p.name == {provider.name!r})
x = torch.randn({sizes[-1]}, {MEMORY_DIM})
for n in [100, *{sizes}]:
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # resets the peak
    before = kilobytes("VmRSS")
    provider.compute(x[:n], 30.0)
    print("peak", kilobytes("VmHWM") - before, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parents[2])],
        capture_output=True,
        text=True,
    )
    # The process may have run out of memory, and libraries print lines of their own
    said = (line.split() for line in done.stdout.splitlines())
    peaks = [1024 * float(words[1]) for words in said if words[:1] == ["peak"]]
    return dict(zip(sizes, peaks[1:], strict=False))


def table(timings: list[dict], op: str) -> list[str]:
    """Returns a table of median times in ms, with ratios to the best other one and the floor."""
    by_shape: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    floors: dict[tuple[int, int], float] = {}
    for timing in timings:
        info = timing["extra_info"]
        if info["op"] == op:
            by_shape[info["N"], info["d"]][info["provider"]] = timing["stats"]["median"]
            floors |= {(info["N"], info["d"]): info["floor"]} if "floor" in info else {}
    names = list(dict.fromkeys(name for times in by_shape.values() for name in times))
    extra = ["best peer / ours"] + (["floor", "floor / ours"] if floors else [])
    lines = [
        "| N, d | " + " | ".join(names + extra) + " |",
        "|---" * (len(names + extra) + 1) + "|",
    ]
    for shape, times in by_shape.items():
        ours = times[OURS]
        peers = [seconds for name, seconds in times.items() if name != OURS]
        cells = [f"{1e3 * times[name]:.2f}" if name in times else "–" for name in names]
        cells.append(f"{min(peers) / ours:.2f}" if peers else "–")
        if floors:
            cells += [f"{1e3 * floors[shape]:.2f}", f"{floors[shape] / ours:.0%}"]
        lines.append(f"| {shape[0]}, {shape[1]} | " + " | ".join(cells) + " |")
    return lines


def sections(timings: list[dict]) -> list[str]:
    """Returns the tables of one run; each run uses one instruction set."""
    info = timings[0]["extra_info"]
    product, exponentials = next(
        t["extra_info"]["rates"] for t in timings if "rates" in t["extra_info"]
    )
    return [
        info["environment"],
        f"torch's matrix product: {product / 1e9:.0f} GFLOP/s; torch's exponential: "
        f"{exponentials / 1e9:.1f} G/s.",
        "",
        f"### rbf_repulsion: the force ({info['instruction_set']})",
        "",
        *table(timings, "rbf_repulsion"),
        "",
        f"### median_sq_distance: the exact median ({info['instruction_set']})",
        "",
        *table(timings, "median_sq_distance"),
        "",
    ]


def plot(timings: list[dict], memory: dict[str, dict[int, float]], path: Path) -> None:
    """Plots each provider's time by shape and its peak memory by N."""
    times = {
        (info["provider"], (info["N"], info["d"])): 1e3 * timing["stats"]["median"]
        for timing in timings
        if (info := timing["extra_info"])["op"] == "rbf_repulsion"
    }
    shapes = sorted({shape for _, shape in times}, key=lambda shape: times[OURS, shape])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.8), width_ratios=(1.5, 1))
    for number, provider in enumerate(p.name for p in FORCE):
        style = {"color": f"C{number}", "label": provider, "marker": "o"}
        style["linewidth"] = 2.5 if provider == OURS else 0.7
        style["zorder"] = 3 if provider == OURS else 2
        heights = [times.get((provider, shape), float("nan")) for shape in shapes]
        left.plot(range(len(shapes)), heights, **style)
        # A logarithmic axis has no zero
        mebibytes = [max(peak / 2**20, 0.1) for peak in memory[provider].values()]
        right.loglog(memory[provider].keys(), mebibytes, **style)
    label_shapes(left, shapes)
    right.set(xlabel=f"N (d = {MEMORY_DIM})", ylabel="added peak memory, MiB")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="major")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    timings = read_timings(__doc__, "provider")
    memory = {provider.name: peak_memory(provider) for provider in FORCE}
    ours = memory[OURS]
    runs: dict[str, list[dict]] = defaultdict(list)
    for timing in timings:
        runs[timing["extra_info"]["instruction_set"]].append(timing)
    lines = [
        "# The pairwise kernels on the CPU",
        "",
        "Median times of one call in ms, in float32. All columns of a table were timed in one "
        "run, after a check against float64. A dash means that the shape does not fit in memory "
        "or takes minutes. The floor is the larger time of 3 N² d FLOP at the rate of torch's "
        "matrix product and N²/2 exponentials at the rate of torch's exponential, both measured "
        "in the same run. Our products can be faster than torch's, and a call can then take less "
        "than the floor. For an instruction set below the processor's best, torch, MKL and our "
        "kernels were restricted to it; KeOps was not.",
        "",
    ]
    for instruction_set, run in runs.items():
        lines += [f"## {TITLES[instruction_set]}", "", *sections(run)]
    lines += [
        "## Added peak memory of the force",
        "",
        f"d = {MEMORY_DIM}, MiB, including the force itself ({MEMORY_DIM * 4} bytes per particle): "
        + ", ".join(f"{bytes_ / 2**20:.1f} at N = {n:,}" for n, bytes_ in ours.items())
        + ".",
    ]
    (RESULTS / "kernels.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    plot(next(iter(runs.values())), memory, RESULTS / "kernels.png")


if __name__ == "__main__":
    main()
