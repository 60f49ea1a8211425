"""Runs `fastrepulse evaluate` in several processes that share one folder.

    python -m bench.diversity.parallel --out n64 -n 64 --processes 13

One process searches each method's strength. Then all processes split the runs. At the end the
evaluation finds every run done and writes its tables. A stopped run resumes when started again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.multiprocessing as mp

from fastrepulse import load_model
from fastrepulse.evaluation.comparison import DEFAULT_RULE, evaluate
from fastrepulse.evaluation.runs import Protocol, RunLog, figures_of, run_all
from fastrepulse.evaluation.search import search
from fastrepulse.evaluation.settings import (
    ALL,
    FULL_CAPTIONS,
    INDEPENDENT,
    Family,
    Setting,
    select,
)
from fastrepulse.models.shipped import Recommended

Job = tuple[argparse.Namespace, int]
"""The arguments, and the index of the process."""


def compared_of(args: argparse.Namespace) -> list[Setting | Family]:
    """Returns the settings and families to compare."""
    return select(ALL, args.methods) if args.methods else ALL


def log_of(args: argparse.Namespace) -> RunLog:
    """Reads the log, including the runs of other processes."""
    protocol = Protocol(
        args.num_particles, Recommended().num_inference_steps, args.guidance_scale, "float32"
    )
    return RunLog(args.out, protocol)


def find(args: argparse.Namespace, compared: Sequence[Setting | Family]) -> list[Setting]:
    """Returns the settings, each family at the largest strength that the rule allows."""
    model, log = load_model(dtype=torch.float32), log_of(args)

    def calibrate(setting: Setting) -> list[dict[str, float]]:
        return figures_of(log, model, setting, args.calibration_seeds, args.compile, False)

    return search(compared, calibrate, FULL_CAPTIONS, DEFAULT_RULE)[0]


def search_some(job: Job) -> None:
    """Searches the strengths of one process's families."""
    args, number = job
    torch.set_num_threads(args.threads)
    families = [each for each in compared_of(args) if isinstance(each, Family)]
    find(args, families[number :: args.processes])


def run_some(job: Job) -> None:
    """Runs one process's share in order of seeds, so a stopped run has all methods."""
    args, number = job
    torch.set_num_threads(args.threads)
    settings = [FULL_CAPTIONS, INDEPENDENT, *find(args, compared_of(args))]
    model, log = load_model(dtype=torch.float32), log_of(args)
    jobs = [(setting, seed) for seed in range(args.seeds) for setting in settings]
    for setting, seed in jobs[number :: args.processes]:
        run_all(log, model, [setting], [seed], args.compile, False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-n", "--num-particles", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=Recommended().guidance_scale)
    parser.add_argument("--methods", nargs="*", help="Methods to compare; all by default.")
    parser.add_argument("--calibration-seeds", type=int, nargs="+", default=[1000, 1001])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="Threads of each process.")
    parser.add_argument("--compile", action="store_true", help="Compile the model in each process.")
    args = parser.parse_args()
    jobs = [(args, number) for number in range(args.processes)]
    model = load_model(dtype=torch.float32)
    run_all(log_of(args), model, [FULL_CAPTIONS], args.calibration_seeds, args.compile, True)
    with mp.get_context("spawn").Pool(args.processes) as pool:
        pool.map(search_some, jobs, chunksize=1)
        pool.map(run_some, jobs, chunksize=1)
    evaluate(
        args.out,
        compared_of(args),
        num_seeds=args.seeds,
        num_particles=args.num_particles,
        guidance_scale=args.guidance_scale,
        dtype=torch.float32,
        calibration_seeds=args.calibration_seeds,
    )


if __name__ == "__main__":
    main()
