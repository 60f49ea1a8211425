"""Forms of the repulsion on three calibration seeds, from which the default was chosen.

python -m bench.diversity.forms --out forms

Started again, it goes on where it stopped. Two cores take about a minute a row and seed.
"""

import argparse
from pathlib import Path

from fastrepulse import Repulsion, load_model
from fastrepulse.embeddings import KernelSum
from fastrepulse.evaluation.runs import Protocol, RunLog, run_all
from fastrepulse.evaluation.search import mean
from fastrepulse.evaluation.settings import FULL_CAPTIONS, INDEPENDENT, Setting
from fastrepulse.sampling.sample import DEFAULT_STEPS

SEEDS = (1000, 1001, 1002)
FIGURES = ("attribute_vendi", "coverage", "accuracy", "off_data")
BOTH = KernelSum("thirds", "random_cnn")
FORMS = [
    *(Repulsion(strength=s, window=(9.0, 3.0), pause=(9.0, 1.2)) for s in (0.3, 0.4, 0.5)),
    *(Repulsion(strength=0.4, window=(9.0, 3.0), pause=(9.0, p)) for p in (0.9, 0.6, 0.3, 0.0)),
    *(Repulsion(strength=0.4, window=(s, 3.0), pause=(s, 1.2)) for s in (12.0, 7.0, 6.0)),
    Repulsion(strength=0.3, window=(9.0, 3.0)),
    *(Repulsion(strength=s) for s in (0.3, 0.4, 0.5)),
    *(Repulsion(BOTH, s) for s in (0.5, 0.65, 0.8, 1.0)),
    *(
        Repulsion(name, 0.4, window=(9.0, 3.0), pause=(9.0, 1.2))
        for name in ("style_thirds", "halves")
    ),
    *(
        Repulsion(KernelSum("thirds", other), 0.4, window=(9.0, 3.0), pause=(9.0, 1.2))
        for other in ("style_thirds", "pooled", "channel_mean", "halves")
    ),
]


def title(form: Repulsion) -> str:
    """Says what is varied."""
    said = form.settings()
    return f"`{said['embedding']}` {form.strength:g} | {said['window']} | {said['pause']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Where finished runs are kept.")
    args = parser.parse_args()
    model = load_model()
    log = RunLog(
        args.out, Protocol(16, DEFAULT_STEPS, dtype=str(model.dtype).removeprefix("torch."))
    )
    settings = [INDEPENDENT, FULL_CAPTIONS]
    settings += [Setting("repulsion", title(form), {"repulsion": form}) for form in FORMS]
    runs = run_all(log, model, settings, SEEDS, compile=True, progress=True)
    print("| repulsion | window | pause | attribute Vendi | coverage | accuracy | off data |")
    print("|" + "---|" * 7)
    for setting in settings:
        figures = [each for run in runs[setting.title] for each in run.figures]
        different, coverage, accuracy, off = (mean(figures, name) for name in FIGURES)
        name = setting.strength or f"{setting.method} | |"
        print(f"| {name} | {different:.2f} | {coverage:.1%} | {accuracy:.1%} | {off:.2f} |")


if __name__ == "__main__":
    main()
