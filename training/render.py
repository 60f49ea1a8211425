"""Renders the training pictures of the shipped model and records their attributes.

All styles are published under CC0 1.0; `style()` refuses other licences. A picture depends only on
(subject, split, number), so the data set can be rendered again and does not ship.

    python -m training.render --out data
"""

import argparse
import io
import json
import random
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image
from tqdm import tqdm

from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.rendered import COLUMNS, PER_SUBJECT, rendered_pictures
from fastrepulse.default_model.subjects import IMAGE_SIZE, SUBJECTS
from training.frequencies import draw_even, draw_long_tailed

SPLITS = ("long_tailed", "even", "heldout")
"""Long-tailed and even training pictures, and held-out even pictures."""

CHUNK = 250


@cache
def definition(name: str) -> dict[str, Any]:
    """Loads DiceBear's definition of a style."""
    return json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8"))


@cache
def style(name: str) -> Style:
    """Returns a DiceBear style, which must be in the public domain."""
    licence = definition(name)["meta"]["license"]["name"]
    if licence != "CC0 1.0":
        raise ValueError(f"style {name!r} has licence {licence!r}, expected 'CC0 1.0'")
    return Style(definition(name))


def details(subject: Subject) -> dict[str, list[str]]:
    """Returns the values of all options of a subject's style that are not attributes."""
    parts, colours = definition(subject.style)["components"], definition(subject.style)["colors"]
    options = {
        f"{name}Variant": [
            variant for variant, how in part["variants"].items() if how.get("weight", 1) > 0
        ]
        for name, part in parts.items()
        if "variants" in part
    }
    options |= {
        f"{name}Color": [value.removeprefix("#") for value in colour["values"]]
        for name, colour in colours.items()
    }
    named = {attribute.option for attribute in subject.attributes}
    return {k: v for k, v in options.items() if k not in named and len(v) > 1}


def render(
    subject: Subject, seed: str, options: dict[str, Any], size: int
) -> tuple[np.ndarray, dict]:
    """Renders one picture.

    Args:
        subject: The subject.
        seed: Seed of the options that are not given.
        options: DiceBear's options, such as {"potColor": ["fcd34d"]}.
        size: Side of the picture in pixels.

    Returns:
        The picture, uint8 [size, size, 3], and its components and colours.
    """
    avatar = Avatar(style(subject.style), {"seed": seed, "size": size, **options})
    png = resvg_py.svg_to_bytes(
        svg_string=avatar.to_string(), width=size, height=size, skip_system_fonts=True
    )
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    drawn = avatar.to_json()["options"]
    return np.asarray(picture), {k: v for k, v in drawn.items() if k.endswith(("Variant", "Color"))}


def render_some(job: tuple[Subject, str, range, int]) -> tuple[np.ndarray, list[dict]]:
    """Renders some pictures of one subject and split, and returns their options too."""
    subject, split, numbers, size = job
    unnamed = details(subject)
    pictures = np.empty((len(numbers), size, size, 3), np.uint8)
    drawn = []
    for i, number in enumerate(numbers):
        rng = random.Random(f"{subject.name} {split} {number}")
        if split == "long_tailed":
            options = draw_long_tailed(subject, unnamed, rng)
        else:
            options = draw_even(subject, rng)
        pictures[i], shown = render(subject, f"{split}-{number}", options, size)
        drawn.append(shown)
    return pictures, drawn


def render_split(out: Path, split: str, per_subject: int, size: int, workers: int) -> None:
    """Renders one split to `<out>/<split>.npz` and `<split>.json`, in the order of subjects."""
    out.mkdir(parents=True, exist_ok=True)
    starts = range(0, per_subject, CHUNK)
    jobs = [
        (subject, split, range(start, min(start + CHUNK, per_subject)), size)
        for subject in SUBJECTS
        for start in starts
    ]
    with ProcessPoolExecutor(workers) as pool:
        done = list(tqdm(pool.map(render_some, jobs), total=len(jobs), desc=f"render {split}"))
    np.savez(
        out / f"{split}.npz",
        pictures=np.concatenate([pictures for pictures, _ in done]),
        subjects=np.repeat(np.arange(len(SUBJECTS)), per_subject),
    )
    drawn = [options for _, records in done for options in records]
    (out / f"{split}.json").write_text(json.dumps(drawn))


def write_sheet(out: Path) -> None:
    """Writes the first held-out pictures of each subject to `<out>/rendered.webp`."""
    pictures = rendered_pictures(out)[:, :PER_SUBJECT].flatten(0, 1).permute(0, 2, 3, 1)
    rows = pictures.unflatten(0, (-1, COLUMNS)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(rows.numpy()).save(out / "rendered.webp", lossless=True, quality=100, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--per-subject", type=int, default=12000, help="Pictures of each training split."
    )
    parser.add_argument("--heldout-per-subject", type=int, default=400)
    parser.add_argument("--size", type=int, default=IMAGE_SIZE, help="Side in pixels.")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    counts = (args.per_subject, args.per_subject, args.heldout_per_subject)
    for split, per_subject in zip(SPLITS, counts, strict=True):
        render_split(args.out, split, per_subject, args.size, args.workers)
    if args.size == IMAGE_SIZE:
        write_sheet(args.out)


if __name__ == "__main__":
    main()
