"""Compares the default at few steps with independent images and with a pause from the start.

python -m bench.diversity.few_steps --out few-steps

A stopped run resumes when it is started again. Two cores take about three minutes per seed.
"""

import argparse
import math
from pathlib import Path

from fastrepulse import Repulsion, load_model
from fastrepulse.evaluation.runs import Protocol, RunLog, run_all
from fastrepulse.evaluation.search import mean
from fastrepulse.evaluation.settings import INDEPENDENT, Setting

STEPS = (4, 6, 8, 12, 16)
FIGURES = ("attribute_vendi", "coverage", "accuracy", "off_data")
FROM_START = Setting(
    "repulsion",
    "pause and push from the first step",
    {"repulsion": Repulsion(pause=(math.inf, 0.3))},
)
DEFAULT = Setting("repulsion", "the default", {"repulsion": Repulsion()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Folder for finished runs.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    args = parser.parse_args()
    model = load_model()
    dtype = str(model.dtype).removeprefix("torch.")
    head = "steps | setting | attribute Vendi | coverage | accuracy | off data"
    print(f"| {head} |\n|" + "---|" * 6)
    for steps in STEPS:
        log = RunLog(args.out / str(steps), Protocol(16, steps, args.guidance_scale, dtype))
        for setting in (INDEPENDENT, FROM_START, DEFAULT):
            runs = run_all(log, model, [setting], range(args.seeds), compile=False, progress=False)
            figures = [each for run in runs[setting.title] for each in run.figures]
            different, coverage, accuracy, off = (mean(figures, name) for name in FIGURES)
            name = setting.strength or setting.method
            print(
                f"| {steps} | {name} | {different:.2f} | {coverage:.1%} | {accuracy:.1%} "
                f"| {off:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
