"""Measures the shipped model: reconstruction, sparse prompts, and attributes of full captions.

The held-out rendered pictures come from `training.render` (extra `train`).

    python -m bench.diversity.model_quality --data data
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import fastrepulse
from bench.common import environment
from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.judge import judge
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.noise import initial_noise
from fastrepulse.sampling.output import image_grid
from training.autoencoder import evaluate
from training.pictures import load_pictures

RESULTS = Path(__file__).parents[1] / "results"


def full_captions(subject: Subject, count: int) -> list[dict[str, str]]:
    """Returns random values for every attribute of a subject."""
    rng = random.Random(f"full captions of {subject.name}")
    return [{a.name: rng.choice(a.values) for a in subject.attributes} for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="Rendered pictures, for PSNR.")
    parser.add_argument("--model", help="Model folder; the shipped model by default.")
    parser.add_argument("--samples", type=int, default=64, help="Samples for each sparse prompt.")
    parser.add_argument("--captions", type=int, default=32, help="Full captions for each subject.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    model = fastrepulse.load_model(args.model)
    settings = {"model": model, "repulsion": None, "seed": 1000}

    rows, shown = [], []
    values: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for subject in SUBJECTS:
        sparse = fastrepulse.sample(subject.prompt, args.samples, **settings).images
        wanted = full_captions(subject, args.captions)
        prompts = [subject.caption(named) for named in wanted]
        noise = initial_noise(2000, len(prompts), model.latent_shape(None, None))
        full = fastrepulse.sample(prompts, 1, latents=noise, **settings).images
        hits = []
        for (judged, drawn), named in zip(judge(full), wanted, strict=True):
            for name, word in named.items():
                hits.append(judged is subject and drawn[name] == word)
                values[subject.name, name, word].append(hits[-1])
        accuracy = sum(judged is subject for judged, _ in judge(sparse)) / len(sparse)
        rows.append((subject.prompt, accuracy, sum(hits) / len(hits)))
        shown += sparse[:12] + full[:4]
    table = Table("prompt", "samples that show the subject", "attributes of full captions shown")
    for prompt, accuracy, attributes in rows:
        table.add_row(prompt, f"{accuracy:.1%}", f"{attributes:.1%}")
    means = [sum(row[i] for row in rows) / len(rows) for i in (1, 2)]
    table.add_row("mean", *(f"{mean:.1%}" for mean in means))
    Console().print(table)

    shares = ((sum(drawn) / len(drawn), len(drawn), key) for key, drawn in values.items())
    hardest = sorted(shares)[:6]
    lines = ["# Quality of the shipped model", "", environment(), ""]
    if args.data:
        pictures = load_pictures(args.data / "heldout.npz")
        psnr, _ = evaluate(model.vae, pictures)
        lines += [
            f"Reconstruction of {len(pictures)} held-out rendered pictures: {psnr:.2f} dB PSNR.",
            "",
        ]
        print(lines[-2])
    lines += [
        f"{args.samples} samples of each sparse prompt, {args.captions} full captions for each "
        "subject, judged by the classifier:",
        "",
        "| prompt | shows the subject | attributes shown |",
        "|---|---|---|",
        *(f"| {prompt} | {accuracy:.1%} | {shown:.1%} |" for prompt, accuracy, shown in rows),
        f"| **mean** | {means[0]:.1%} | {means[1]:.1%} |",
        "",
        f"Of {len(values)} values, these are drawn least often when a caption names them: "
        + ", ".join(f"{' '.join(key)} {share:.0%} of {count}" for share, count, key in hardest)
        + ".",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "model_quality.md").write_text("\n".join(lines) + "\n")
    image_grid(shown, columns=16).save(args.out / "model_quality.png")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
