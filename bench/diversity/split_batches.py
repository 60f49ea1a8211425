"""Is a split batch with a bank as diverse as a joint one? On the shipped model, drawn for the docs.

python -m bench.diversity.split_batches
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import matplotlib
from matplotlib import pyplot
from rich.progress import track

import fastrepulse
from bench.common import environment
from fastrepulse import Bank, Repulsion
from fastrepulse.default_model.judge import features_of, prompt_accuracy
from fastrepulse.demo import PROMPTS
from fastrepulse.metrics import vendi_score
from fastrepulse.noise import initial_noise

N, BATCH = 16, 4
FIRST_SEED = 204
REPULSION = Repulsion()


def draw(repulsion: Repulsion | None, seed: int, batch: int) -> list:
    """Returns N pictures of every sparse prompt, drawn in batches from the same noise."""
    noise = initial_noise(seed, N, (4, 16, 16))
    images: list[list] = [[] for _ in PROMPTS]
    for start in range(0, N, batch):
        result = fastrepulse.sample(
            list(PROMPTS),
            batch,
            repulsion=repulsion,
            seed=seed,
            latents=noise[start : start + batch].repeat(len(PROMPTS), 1, 1, 1),
            compile=True,
            progress=False,
        )
        for i, own in enumerate(images):
            own.extend(result.images[i * batch : (i + 1) * batch])
    return images


WAYS: dict[str, tuple[int, Callable[[], Repulsion | None]]] = {
    "independent": (N, lambda: None),
    "four batches of 4": (BATCH, lambda: REPULSION),
    "four batches of 4,\nwith a bank": (BATCH, lambda: replace(REPULSION, bank=Bank())),
    "one batch of 16": (N, lambda: REPULSION),
}


def paired(values: list[float], others: list[float]) -> tuple[float, float]:
    """Returns the mean difference of pairs and half its 95% interval."""
    differences = [a - b for a, b in zip(values, others, strict=True)]
    return mean(differences), 1.96 * stdev(differences) / math.sqrt(len(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[2] / "docs")
    args = parser.parse_args()
    matplotlib.use("agg")
    scores: dict[str, list[float]] = {way: [] for way in WAYS}
    accuracy: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in track(range(FIRST_SEED, FIRST_SEED + args.seeds), description="seeds"):
        for way, (batch, repulsion) in WAYS.items():
            for subject, images in zip(
                PROMPTS.values(), draw(repulsion(), seed, batch), strict=True
            ):
                scores[way].append(vendi_score(features_of(images)))
                accuracy[way].append(prompt_accuracy(images, subject))
    print(environment())
    means, errors = [], []
    for way, values in scores.items():
        means.append(mean(values))
        difference, error = paired(values, scores["independent"])
        errors.append(error)
        share = mean(accuracy[way])
        name = " ".join(way.split())
        print(
            f"{name}: Vendi {means[-1]:.2f} ({difference:+.2f} +- {error:.2f}), "
            f"accuracy {share:.1%}"
        )
    _, without, bank, joint = scores.values()
    for name, others in (("without it", without), ("one batch", joint)):
        difference, error = paired(bank, others)
        print(f"with a bank over {name}: {difference:+.2f} +- {error:.2f}")
    figure, axis = pyplot.subplots(figsize=(7, 3))
    axis.barh(list(WAYS), means, xerr=errors, color=["C7", "C1", "C0", "C2"], capsize=4)
    axis.invert_yaxis()
    axis.set(xlabel=f"Vendi score of {N} pictures", xlim=(min(means) - 0.5, None))
    figure.tight_layout()
    figure.savefig(args.docs / "split-batches.png", dpi=90)


if __name__ == "__main__":
    main()
