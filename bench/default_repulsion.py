"""Which repulsion should be the default: diversity against quality on the shipped model.

Samples every sparse prompt independently and with each candidate, from the same noise, and writes
`bench/results/default_repulsion.md` and `.png`. Finished settings are kept in a JSON-lines file, so
that an interrupted run goes on where it stopped.

    python bench/default_repulsion.py --data data --seeds 5
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib
import torch
from common import environment
from matplotlib import pyplot
from rich.progress import track

import fastrepulse
from fastrepulse import Repulsion
from fastrepulse.default_model.classifier import features_of, load_classifier
from fastrepulse.default_model.train_autoencoder import load_pictures, to_float
from fastrepulse.demo import PROMPTS, Figures
from fastrepulse.metrics import frechet_distance, vendi_score
from fastrepulse.sampling import DEFAULT_REPULSION

RESULTS = Path(__file__).parent / "results"
N = 16
FIRST_SEED = 100
"""The default was searched for with other seeds than it is judged with."""
CANDIDATES: list[Repulsion | None] = [
    None,
    *(Repulsion(strength=strength) for strength in (0.8, 1.2, 1.5, 2.0)),
    Repulsion(strength=1.5, window=(math.inf, 2.5)),
    *(
        Repulsion(embedding, strength=0.3)
        for embedding in ("pooled", "channel_mean", "thirds", "latent", "style_classifier", "gram")
    ),
]


def label(repulsion: Repulsion | None) -> str:
    if repulsion is None:
        return "independent"
    start, end = repulsion.window
    window = f"{'∞' if math.isinf(start) else f'{start:g}'} to {end:g}"
    return f"{repulsion.embedding}, {repulsion.on}, {repulsion.strength:g}, {window}"


def measure(repulsion: Repulsion | None, seed: int) -> tuple[dict[str, float], torch.Tensor]:
    """Returns the figures averaged over all sparse prompts, and the features of the pictures."""
    result = fastrepulse.sample(
        list(PROMPTS), N, repulsion=repulsion, seed=seed, compile=True, progress=False
    )
    sets = [result.images[p * N : (p + 1) * N] for p in range(len(PROMPTS))]
    figures = [Figures.of(images, PROMPTS[p]) for p, images in zip(PROMPTS, sets, strict=True)]
    names = ("vendi", "coverage", "accuracy")
    means = {n: sum(getattr(f, n) for f in figures) / len(figures) for n in names}
    return means, features_of(result.images)


@torch.no_grad()
def rendered_features(data: Path) -> torch.Tensor:
    """Returns the judge's features of held-out rendered pictures, as many of each subject."""
    pictures = load_pictures(data / "heldout.npz")
    classifier = load_classifier()
    return torch.cat([classifier.embed(to_float(chunk)) for chunk in pictures.split(256)])


matplotlib.use("agg")


def rendered_vendi(reference: torch.Tensor) -> float:
    """Returns the mean Vendi score of N rendered pictures of one subject."""
    by_subject = reference.view(len(PROMPTS), -1, reference.shape[1])
    sets = [rows for features in by_subject for rows in features.split(N) if len(rows) == N]
    return sum(vendi_score(rows) for rows in sets) / len(sets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "default_repulsion.jsonl"
    reference = rendered_features(args.data)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    seeds = list(range(FIRST_SEED, FIRST_SEED + args.seeds))
    for repulsion in track(CANDIDATES, description="candidates"):
        key = {"repulsion": repulsion.settings() if repulsion else None, "seeds": args.seeds}
        if any(row["key"] == key for row in done):
            continue
        runs = [measure(repulsion, seed) for seed in seeds]
        row = {name: sum(means[name] for means, _ in runs) / len(runs) for name in runs[0][0]}
        row["frechet"] = frechet_distance(torch.cat([features for _, features in runs]), reference)
        done.append({"key": key, "label": label(repulsion), **row})
        with log.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    rows = [row for row in done if row["key"]["seeds"] == args.seeds]
    report(rows, rendered_vendi(reference), args)


def report(rows: list[dict], rendered: float, args: argparse.Namespace) -> None:
    """Writes the table and the trade-off plot."""
    base = next(row for row in rows if row["key"]["repulsion"] is None)
    lines = [
        "# Choice of the default repulsion",
        "",
        environment(),
        "",
        f"Means over {len(PROMPTS)} sparse prompts and {args.seeds} seeds of {N} particles each. "
        "The Vendi score and the Fréchet distance to rendered pictures are taken on the "
        f"classifier's 128 features; {N} rendered pictures of a subject score {rendered:.2f}.",
        "",
        "| embedding, on, strength, window | Vendi score | | coverage | accuracy | Fréchet |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["vendi"]):
        lines.append(
            f"| {row['label']} | {row['vendi']:.2f} | {row['vendi'] / base['vendi'] - 1:+.0%} | "
            f"{row['coverage']:.1%} | {row['accuracy']:.1%} | {row['frechet']:.2f} |"
        )
    (args.out / "default_repulsion.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), sharex=True)
    for axis, name, title in zip(
        axes, ("accuracy", "frechet"), ("prompt accuracy", "Fréchet distance"), strict=True
    ):
        for row in rows:
            family = row["label"].split(",")[0]
            families = sorted({r["label"].split(",")[0] for r in rows})
            axis.scatter(
                row["vendi"],
                row[name],
                color=f"C{families.index(family)}",
                label=family,
                marker="*" if row["label"] == label(DEFAULT_REPULSION) else "o",
                s=180 if row["label"] == label(DEFAULT_REPULSION) else 40,
            )
        axis.set(xlabel="Vendi score", ylabel=title)
        axis.grid(alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axes[1].legend(unique.values(), unique.keys(), fontsize=8)
    figure.tight_layout()
    figure.savefig(args.out / "default_repulsion.png", dpi=110)


if __name__ == "__main__":
    main()
