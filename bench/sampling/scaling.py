"""Measures the speed-up by two processes and the cost of checkpoints.

    python -m bench.sampling.scaling --out bench/results

One and two processes of one thread each draw the same images in turn, after an untimed run.
Checkpoints are written after every step and timed inside one run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fastrepulse
from bench.common import environment
from fastrepulse.sampling.checkpoint import Checkpoints

PROMPT = "a potted plant"


def draw(folder: Path, n: int, steps: int, **how: Any) -> tuple[float, fastrepulse.SampleResult]:
    """Draws into a new folder; returns seconds and the result."""
    how = {"num_inference_steps": steps, "seed": 0, "progress": False, "compile": False, **how}
    start = time.perf_counter()
    result = fastrepulse.sample(PROMPT, n, out=folder, device="cpu", **how)
    return time.perf_counter() - start, result


def in_process(args: argparse.Namespace) -> None:
    """Runs in each process of a group: draws once untimed and once timed."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = dist.group.WORLD
    draw(args.worker / "untimed", 2 * dist.get_world_size(), 2, group=group)
    seconds, _ = draw(args.worker / "timed", args.num_particles, args.steps, group=group)
    if dist.get_rank() == 0:
        (args.worker / "seconds.json").write_text(json.dumps(seconds), "utf-8")
    dist.destroy_process_group()


def timed(processes: int, n: int, steps: int) -> tuple[float, list[bytes]]:
    """Returns the time that a number of processes takes, and the images."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "-m", "bench.sampling.scaling"]
        command += ["--worker", name, "-n", str(n), "--steps", str(steps)]
        subprocess.run(
            command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        images = sorted((Path(name) / "timed").glob("[0-9]*.png"))
        seconds = json.loads((Path(name) / "seconds.json").read_text("utf-8"))
        return seconds, [image.read_bytes() for image in images]


def share_of_checkpoints(n: int, steps: int) -> float:
    """Returns the share of a run's time that checkpoints after every step take."""
    spent, real = [], Checkpoints._write

    def write(self: Checkpoints, *given: Any) -> bool:
        start = time.perf_counter()
        done = real(self, *given)
        spent.append(time.perf_counter() - start)
        return done

    Checkpoints._write = write  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as name:
            seconds, result = draw(Path(name) / "out", n, steps, checkpoint_every=0)
    finally:
        Checkpoints._write = real  # type: ignore[method-assign]
    assert len(spent) == len(result.diagnostics) + 1
    return sum(spent) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--num-particles", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Folder for scaling.md.")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        in_process(args)
        return
    ratios, equal = [], True
    for _ in range(args.rounds):
        (one, expected), (two, drawn) = (
            timed(processes, args.num_particles, args.steps) for processes in (1, 2)
        )
        equal &= len(drawn) == len(expected) == args.num_particles
        ratios.append(one / two)
        print(f"one process {one:.1f} s, two {two:.1f} s: {one / two:.2f}", flush=True)
    shares = [share_of_checkpoints(args.num_particles, args.steps) for _ in range(args.rounds)]
    assert equal
    ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
    lines = [
        "# Several processes, and checkpoints",
        "",
        f"{args.num_particles} particles of the shipped model, {args.steps} steps, float32, not "
        f"compiled. Median, minimum and maximum of {args.rounds} rounds.",
        "",
        "| | |",
        "|---|---|",
        "| images per second, two processes over one, one thread each "
        f"| {ratio:.2f} [{low:.2f}, {high:.2f}] |",
        "| share of the run's time for a checkpoint after every step "
        f"| {statistics.median(shares):.2%} [{min(shares):.2%}, {max(shares):.2%}] |",
        "",
        environment(),
    ]
    print("\n".join(lines))
    if args.out is not None:
        (args.out / "scaling.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
