"""Makes a report of the timings of `bench_sampling.py`; measures parts of a step and memory.

python -m bench.sampling.report timings.json timings-avx2.json
"""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from bench.common import read_timings
from bench.sampling.shares import PARTS, shares
from fastrepulse import models

RESULTS = Path(__file__).parents[1] / "results"
SHARE_SIZES = (64, 1024, 4096)
MEMORY_SIZES = (64, 256, 1024, 10_000)

matplotlib.use("agg")


def run_of(n: int) -> dict[str, float]:
    """Returns time per particle and added peak memory of one step, in a new process."""
    # Short runs vary, so they are repeated
    rounds = max(1, 1024 // n)
    program = (
        "import json, resource, statistics, sys, tempfile, time, torch, fastrepulse\n"
        "def peak(): return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "settings = dict(num_inference_steps=1, seed=0, progress=False, compile=False)\n"
        "model = fastrepulse.load_model()\n"
        "repulsion = fastrepulse.Repulsion(window=(float('inf'), 0.0), pause=None)\n"
        "fastrepulse.sample('a planet', 64, model=model, repulsion=repulsion, **settings)\n"
        "before, seconds = peak(), []\n"
        f"for _ in range({rounds}):\n"
        "    with tempfile.TemporaryDirectory() as folder:\n"
        "        start = time.perf_counter()\n"
        f"        fastrepulse.sample('a planet', {n}, model=model, repulsion=repulsion,\n"
        "                           out=folder, **settings)\n"
        "        seconds.append(time.perf_counter() - start)\n"
        f"print(json.dumps(dict(seconds=statistics.median(seconds) / {n},\n"
        "                      memory=peak() - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def grouped(timings: list[dict]) -> list[str]:
    """Returns a table for each group of timings."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for timing in timings:
        if timing["extra_info"].get("variant"):
            groups[timing["group"]].append(timing)
    lines = []
    for group, members in groups.items():
        slowest = max(timing["stats"]["median"] for timing in members)
        base = next(
            (t["stats"]["median"] for t in members if t["extra_info"]["variant"] == "diffusers"),
            slowest,
        )
        lines += [f"## {group}", "", "| | median | images/s | times faster |", "|---|---|---|---|"]
        for timing in members:
            info, median = timing["extra_info"], timing["stats"]["median"]
            rate = f"{info['images'] / median:.2f}" if "images" in info else "–"
            lines.append(
                f"| {info['variant']} | {1e3 * median:.1f} ms | {rate} | {base / median:.2f} |"
            )
            if "first_step_seconds" in info and "compiled" in info["variant"]:
                lines[-1] = lines[-1].replace(
                    " | ", f" (compiled in {info['first_step_seconds']:.0f} s) | ", 1
                )
        lines.append("")
    return lines


def main() -> None:
    timings = read_timings(__doc__, "variant")
    model = models.load_model()
    shares(model, SHARE_SIZES[0], 1, compile=True)  # compiles
    # Short steps vary, so they are repeated
    split = {n: shares(model, n, max(1, 1024 // n), compile=True) for n in SHARE_SIZES}
    runs = {n: run_of(n) for n in MEMORY_SIZES}
    latent_bytes = 4 * 16 * 16 * 4
    environment = next(
        t["extra_info"]["environment"] for t in timings if "environment" in t["extra_info"]
    )
    lines = [
        "# The denoise loop on the CPU",
        "",
        environment + " Times are medians. All variants of a table were timed in one run. For an "
        "instruction set below the processor's best, torch, oneDNN, MKL and our kernels were "
        "restricted to it.",
        "",
        *grouped(timings),
        "## Parts of a step (compiled, repulsion at every step)",
        "",
        "| N | model | repulsion | rest | repulsion / model |",
        "|---|---|---|---|---|",
        *(
            f"| {n} | {s['model']:.3f} s | {1e3 * s['repulsion']:.1f} ms | "
            f"{1e3 * s['rest']:.1f} ms | {s['repulsion'] / s['model']:.1%} |"
            for n, s in split.items()
        ),
        "",
        "## Growing N (one step, not compiled, images written to a folder)",
        "",
        "Memory is the growth of the process's peak after a run of 64 particles. One set of "
        f"latents takes {latent_bytes} bytes per particle.",
        "",
        "| N | time per particle | added peak memory | in sets of latents |",
        "|---|---|---|---|",
        *(
            f"| {n:,} | {1e3 * run['seconds']:.2f} ms | {run['memory'] / 2**20:.0f} MiB | "
            f"{run['memory'] / (n * latent_bytes):.1f} |"
            for n, run in runs.items()
        ),
    ]
    (RESULTS / "throughput.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    plot(split, runs)


def plot(split: dict[int, dict[str, float]], runs: dict[int, dict[str, float]]) -> None:
    """Plots the parts of a step, and time per particle and memory by N."""
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4))
    bottom = [0.0] * len(split)
    for part in PARTS:
        heights = [s[part] / sum(s.values()) for s in split.values()]
        left.bar([f"{n:,}" for n in split], heights, bottom=bottom, label=part)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    left.set(xlabel="N", ylabel="share of a step", ylim=(0, 1.15))
    left.legend(loc="upper center", ncols=len(PARTS), frameon=False)
    times = [1e3 * run["seconds"] for run in runs.values()]
    middle.semilogx(list(runs), times, marker="o")
    middle.set(xlabel="N", ylabel="time per particle and step, ms", ylim=(0, 1.15 * max(times)))
    right.semilogx(list(runs), [run["memory"] / 2**20 for run in runs.values()], marker="o")
    right.set(xlabel="N", ylabel="added peak memory, MiB")
    for axis in (middle, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(RESULTS / "throughput.png", dpi=110)


if __name__ == "__main__":
    main()
