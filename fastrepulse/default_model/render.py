"""Renders the pictures that the default model was trained on, each with the attributes drawn in it.

Every style used is published under CC0 1.0; `style()` refuses any other licence. A picture is a
function of (subject, seed) alone, so the data set is regenerated instead of shipped.

    python -m fastrepulse.default_model.render --out data --per-subject 6000
"""

import argparse
import io
import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image
from tqdm import tqdm

from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.subjects import IMAGE_SIZE, SUBJECTS


@cache
def style(name: str) -> Style:
    """Loads a DiceBear style and refuses one that is not in the public domain."""
    definition = json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8"))
    licence = definition["meta"]["license"]["name"]
    if licence != "CC0 1.0":
        raise ValueError(f"style {name!r} has licence {licence!r}, accepted is 'CC0 1.0'")
    return Style(definition)


def render(subject: Subject, seed: str) -> tuple[np.ndarray, dict]:
    """Draws one picture.

    Returns:
        The picture, uint8 [64, 64, 3], and the components and colours drawn in it.
    """
    avatar = Avatar(style(subject.style), {"seed": seed, "size": IMAGE_SIZE})
    png = resvg_py.svg_to_bytes(
        svg_string=avatar.to_string(), width=IMAGE_SIZE, height=IMAGE_SIZE, skip_system_fonts=True
    )
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    options = avatar.to_json()["options"]
    drawn = {k: v for k, v in options.items() if k.endswith(("Variant", "Color"))}
    return np.asarray(picture), drawn


def render_subject(job: tuple[Subject, str, int]) -> tuple[np.ndarray, list[dict]]:
    """Draws `count` pictures of one subject, with what was drawn in each."""
    subject, split, count = job
    pictures = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    drawn = []
    for i in range(count):
        pictures[i], options = render(subject, f"{split}-{i}")
        drawn.append(options)
    return pictures, drawn


def render_split(out: Path, split: str, per_subject: int, workers: int = 2) -> None:
    """Renders one split ("train" or "heldout") to `<out>/<split>.npz` and `<split>.json`."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(subject, split, per_subject) for subject in SUBJECTS]
    with ProcessPoolExecutor(workers) as pool:
        done = list(tqdm(pool.map(render_subject, jobs), total=len(jobs), desc=f"render {split}"))
    np.savez(
        out / f"{split}.npz",
        pictures=np.concatenate([pictures for pictures, _ in done]),
        subjects=np.repeat(np.arange(len(SUBJECTS)), per_subject),
    )
    drawn = [options for _, records in done for options in records]
    (out / f"{split}.json").write_text(json.dumps(drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-subject", type=int, default=6000)
    parser.add_argument("--heldout-per-subject", type=int, default=400)
    args = parser.parse_args()
    render_split(args.out, "train", args.per_subject)
    render_split(args.out, "heldout", args.heldout_per_subject)


if __name__ == "__main__":
    main()
