"""Compares four batches, with and without a bank, with one joint batch on the shipped model.

python -m bench.diversity.split_batches    # writes docs/split-batches.md and .png
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot
from rich.progress import track

import fastrepulse
from bench.common import environment
from fastrepulse import Bank, Repulsion
from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.evaluation.measure import Estimate
from fastrepulse.evaluation.tables import interval
from fastrepulse.noise import initial_noise

N, BATCH = 16, 4
FIRST_SEED = 204
REPULSION = Repulsion()
WAYS: dict[str, tuple[int, Callable[[], Repulsion | None]]] = {
    "independent": (N, lambda: None),
    "four batches of 4": (BATCH, lambda: REPULSION),
    "four batches of 4,\nwith a bank": (BATCH, lambda: replace(REPULSION, bank=Bank())),
    "one batch of 16": (N, lambda: REPULSION),
}

EXPLANATION = """\
The default's push has the same length for any number of particles, and the pause of guidance makes
all of them different. So batches of four are nearly as varied as one of sixteen, and a bank gains
most of the rest. Every batch needs a seed of its own. Particles of the same number in two batches
would otherwise get the same new noise at the restart."""


def draw(repulsion: Repulsion | None, seed: int, batch: int) -> list[list]:
    """Returns N images of every sparse prompt, drawn in batches from the same noise."""
    noise = initial_noise(seed, N, (4, 16, 16))
    images: list[list] = [[] for _ in PROMPTS]
    for start in range(0, N, batch):
        result = fastrepulse.sample(
            list(PROMPTS),
            batch,
            repulsion=repulsion,
            # A restart draws noise from the seed, so every batch needs its own
            seed=seed + 1000 * start,
            latents=noise[start : start + batch].repeat(len(PROMPTS), 1, 1, 1),
            dtype=torch.float32,
            progress=False,
        )
        for i, own in enumerate(images):
            own.extend(result.images[i * batch : (i + 1) * batch])
    return images


def measured(seeds: range) -> dict[str, list[Figures]]:
    """Returns the figures of each way, on every prompt and seed."""
    figures: dict[str, list[Figures]] = {way: [] for way in WAYS}
    for seed in track(seeds, description="seeds"):
        for way, (batch, repulsion) in WAYS.items():
            drawn = draw(repulsion(), seed, batch)
            pairs = zip(drawn, PROMPTS.values(), strict=True)
            figures[way] += [Figures.of(images, subject) for images, subject in pairs]
    return figures


def table(figures: dict[str, list[Figures]]) -> list[str]:
    """Returns one row per way, with 95% bootstrap intervals over prompts and seeds."""
    lines = ["| | attribute Vendi | over the row above | coverage | accuracy | off data |"]
    lines.append("|" + "---|" * 6)
    above: list[float] = []
    for way, own in figures.items():
        vendi = [each.attribute_vendi for each in own]
        gain = [a - b for a, b in zip(vendi, above, strict=False)]
        cells = [" ".join(way.split()), interval(Estimate.of(vendi))]
        cells.append(interval(Estimate.of(gain), "+.2f") if gain else "")
        cells += [f"{sum(e.coverage for e in own) / len(own):.1%}"]
        cells += [f"{sum(e.accuracy for e in own) / len(own):.1%}"]
        cells += [f"{sum(e.off_data for e in own) / len(own):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
        above = vendi
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[2] / "docs")
    args = parser.parse_args()
    matplotlib.use("agg")
    figures = measured(range(FIRST_SEED, FIRST_SEED + args.seeds))
    lines = [
        f"# {N} images in four batches",
        "",
        f"Eight sparse prompts, seeds {FIRST_SEED} to {FIRST_SEED + args.seeds - 1}, 25 Euler "
        f"steps, guidance 5. All rows start from the same noise. {environment()}",
        "",
        *table(figures),
        "",
        EXPLANATION,
        "",
        "![Different images in four ways](split-batches.png)",
    ]
    (args.docs / "split-batches.md").write_text("\n".join(lines) + "\n", "utf-8")
    estimates = [Estimate.of([each.attribute_vendi for each in own]) for own in figures.values()]
    errors = [[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]
    figure, axis = pyplot.subplots(figsize=(7, 3))
    means = [estimate.mean for estimate in estimates]
    axis.barh(list(WAYS), means, xerr=errors, color=["C7", "C1", "C0", "C2"], capsize=4)
    axis.invert_yaxis()
    axis.set(xlabel=f"different images of {N} (attribute Vendi score)", xlim=(1, None))
    figure.tight_layout()
    figure.savefig(args.docs / "split-batches.png", dpi=90)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
