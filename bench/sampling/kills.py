"""Checks that a run that is killed many times gives the images of an uninterrupted run.

    python -m bench.sampling.kills --kills 100 -n 200

Each process starts or resumes a run and gets SIGKILL after a random time, during a step, a
checkpoint or an image. A finished run is compared byte for byte, and the next one begins. Writes a
summary to `--out`.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastrepulse
from fastrepulse.sampling.output import CHECKPOINTS

PROMPT = "a potted plant"


def draw(folder: Path, **how: Any) -> None:
    """Draws into a folder, or resumes the run in it."""
    if any(folder.glob(CHECKPOINTS)):
        fastrepulse.resume(folder, checkpoint_every=0, progress=False)
    else:
        fastrepulse.sample(PROMPT, out=folder, checkpoint_every=0, progress=False, **how)


def in_process(job: Callable[[], None], seconds: float | None) -> bool:
    """Runs a job in a new process, killed after some seconds; returns whether it finished."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            job()
            status = 0
        finally:
            os._exit(status)
    stop = None if seconds is None else time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                return True
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                return False
            raise RuntimeError("a process that was not killed failed")
        if stop is not None and time.monotonic() > stop:
            os.kill(child, signal.SIGKILL)
            stop = None
        time.sleep(0.002)


def images_in(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of the images, the grid and the summary."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("-n", "--num-particles", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--size", type=int, default=32, help="Image size in pixels.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random times.")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.25,
        help="Longest time before a kill, as a fraction of a whole run.",
    )
    parser.add_argument("--out", type=Path, help="File for the summary, JSON.")
    args = parser.parse_args()
    # os.fork() does not copy threads
    torch.set_num_threads(1)
    how = {
        "num_particles": args.num_particles,
        "num_inference_steps": args.steps,
        "height": args.size,
        "width": args.size,
        "seed": 0,
        "model": fastrepulse.load_model(device="cpu"),
        "compile": False,
    }
    rng = random.Random(args.seed)
    kills, runs, at_steps = 0, 0, []
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        start = time.monotonic()
        in_process(lambda: draw(whole, **how), None)
        seconds = time.monotonic() - start
        expected = images_in(whole)
        while kills < args.kills:
            folder, done, runs = Path(name) / f"run-{runs}", False, runs + 1
            while not done:
                longest = args.patience * seconds
                patience = rng.uniform(0, longest) if kills < args.kills else None
                done = in_process(lambda folder=folder: draw(folder, **how), patience)
                if not done:
                    kills += 1
                    left = sorted(folder.glob(CHECKPOINTS)) if folder.exists() else []
                    at_steps.append(int(left[-1].stem.split("-")[1]) if left else 0)
            got = images_in(folder)
            differing = [name for name in got | expected if got.get(name) != expected.get(name)]
            if differing:
                raise SystemExit(f"after {kills} kills, these files differ: {', '.join(differing)}")
            print(f"{kills} kills, {runs} runs, all images equal", flush=True)
    if args.out is not None:
        about = {"kills": kills, "runs": runs, "particles": args.num_particles}
        about |= {"steps done when killed": at_steps, "uninterrupted seconds": round(seconds, 2)}
        args.out.write_text(json.dumps(about, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
