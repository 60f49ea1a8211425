"""The default with few steps, beside independent pictures and a pause that begins with the run.

python -m bench.diversity.few_steps --out few-steps

Started again, it goes on where it stopped. Two cores take about three minutes a seed.
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
AT_ONCE = Setting(
    "repulsion",
    "pause and push from the first step",
    {"repulsion": Repulsion(pause=(math.inf, 0.3))},
)
DEFAULT = Setting("repulsion", "the default", {"repulsion": Repulsion()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Where finished runs are kept.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    args = parser.parse_args()
    model = load_model()
    dtype = str(model.dtype).removeprefix("torch.")
    head = "steps | setting | attribute Vendi | coverage | accuracy | off data"
    print(f"| {head} |\n|" + "---|" * 6)
    for steps in STEPS:
        log = RunLog(args.out / str(steps), Protocol(16, steps, args.guidance_scale, dtype))
        for setting in (INDEPENDENT, AT_ONCE, DEFAULT):
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
