"""Compares settings of the repulsion on three calibration seeds; the default was chosen here.

python -m bench.diversity.forms --out forms

A stopped run resumes when it is started again. Two cores take about a minute per row and seed.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from fastrepulse import Repulsion, load_model
from fastrepulse.embeddings import KernelSum
from fastrepulse.evaluation.runs import Protocol, RunLog, run_all
from fastrepulse.evaluation.search import mean
from fastrepulse.evaluation.settings import FULL_CAPTIONS, INDEPENDENT, Setting
from fastrepulse.models.shipped import Recommended

SEEDS = (1000, 1001, 1002)
FIGURES = ("attribute_vendi", "coverage", "accuracy", "off_data")
BOTH = KernelSum("thirds", "random_cnn")
PLAIN = Repulsion(strength=0.3, pause=(9.0, 0.6), restart=None)
FORMS = [
    replace(PLAIN, strength=1e-6),  # the pause alone
    *(replace(PLAIN, strength=s) for s in (0.2, 0.3, 0.4)),
    replace(PLAIN, strength=0.4, window=(9.0, 3.0)),
    *(replace(PLAIN, pause=(9.0, end)) for end in (0.3, 1.2)),
    replace(PLAIN, window=(10.5, 4.0), pause=(10.5, 0.6)),
    replace(PLAIN, embedding=BOTH, strength=0.65),
    *(replace(PLAIN, restart=levels) for levels in ((3.0, 1.0), (2.0, 0.6))),
    replace(PLAIN, strength=0.4, restart=(3.0, 1.0)),
    *(Repulsion(strength=s) for s in (0.3, 0.4, 0.5)),
]


def title(form: Repulsion) -> str:
    """Returns the cells that describe a setting."""
    said = form.settings()
    levels = " | ".join(str(said[name]) for name in ("window", "pause", "restart"))
    return f"`{said['embedding']}` {form.strength:g} | {levels}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Folder for finished runs.")
    parser.add_argument("--guidance-scale", type=float, default=Recommended().guidance_scale)
    args = parser.parse_args()
    model = load_model()
    dtype = str(model.dtype).removeprefix("torch.")
    log = RunLog(
        args.out, Protocol(16, Recommended().num_inference_steps, args.guidance_scale, dtype)
    )
    settings = [INDEPENDENT, FULL_CAPTIONS]
    settings += [Setting("repulsion", title(form), {"repulsion": form}) for form in FORMS]
    runs = run_all(log, model, settings, SEEDS, compile=True, progress=True)
    head = "repulsion | window | pause | restart | attribute Vendi | coverage | accuracy | off data"
    print(f"| {head} |\n|" + "---|" * 8)
    for setting in settings:
        figures = [each for run in runs[setting.title] for each in run.figures]
        different, coverage, accuracy, off = (mean(figures, name) for name in FIGURES)
        name = setting.strength or f"{setting.method} | | |"
        print(f"| {name} | {different:.2f} | {coverage:.1%} | {accuracy:.1%} | {off:.2f} |")


if __name__ == "__main__":
    main()
