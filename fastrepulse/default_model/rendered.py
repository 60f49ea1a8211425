"""Rendered pictures in which every value is equally common: what samples should look like.

200 of each subject ship as `rendered.webp`, so that samples can be held to them without rendering
any. The file is made from the output of `training/render.py` by

    python -m fastrepulse.default_model.rendered --data data
"""

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.judge import load_classifier
from fastrepulse.default_model.subjects import IMAGE_SIZE, SUBJECTS
from fastrepulse.metrics.patches import PatchReference
from fastrepulse.metrics.spaces import to_pictures

SHEET = Path(__file__).parent / "rendered.webp"
PER_SUBJECT = 200
COLUMNS = 40
HELD_OUT = 16
"""How many of a subject's pictures say how far rendered pictures are from others of their kind."""


@cache
def rendered_pictures(data: Path | None = None) -> Tensor:
    """Returns held-out rendered pictures, uint8 [subjects, M, 3, 64, 64].

    Args:
        data: A folder with `heldout.npz` of `training/render.py`; None for the 200 of each subject
            that ship.

    Raises:
        FileNotFoundError: If the folder holds no such file.
    """
    if data is None:
        with Image.open(SHEET) as sheet:
            rows = np.asarray(sheet.convert("RGB")).reshape(-1, IMAGE_SIZE, COLUMNS, IMAGE_SIZE, 3)
        pictures = rows.swapaxes(1, 2).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)
    else:
        file = data / "heldout.npz"
        if not file.is_file():
            raise FileNotFoundError(f"data must be a folder with heldout.npz, got {str(data)!r}")
        with np.load(file) as loaded:
            pictures = loaded["pictures"]
    channels_first = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    return channels_first.reshape(len(SUBJECTS), -1, *channels_first.shape[1:])


@cache
def rendered_features(data: Path | None = None) -> Tensor:
    """Returns the judge's features [subjects, M, 128] of `rendered_pictures(data)`."""
    pictures = rendered_pictures(data)
    classifier = load_classifier()
    with torch.no_grad():
        # In [-1, 1], as it was trained
        chunks = [classifier.embed(p / 127.5 - 1) for p in pictures.flatten(0, 1).split(256)]
    return torch.cat(chunks).view(*pictures.shape[:2], -1)


def off_data(images: Sequence[Image.Image], subject: Subject) -> float:
    """Returns how far pictures are from rendered ones of the subject: 1 is as rendered ones are.

    The mean distance of their patches to the nearest patch of a rendered picture, over that of
    rendered pictures which are not among them (`metrics.PatchReference`). Dirt of every kind adds
    to it, while variety does not.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reference, own = _reference(SUBJECTS.index(subject), device)
    return reference.distance(to_pictures(images).to(device)).mean().item() / own


@cache
def _reference(subject: int, device: str) -> tuple[PatchReference, float]:
    """Returns the patches of a subject, and how far rendered pictures are from them."""
    pictures = (rendered_pictures()[subject] / 255).to(device)
    reference = PatchReference(pictures[HELD_OUT:])
    return reference, reference.distance(pictures[:HELD_OUT]).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    pictures = rendered_pictures(args.data)[:, :PER_SUBJECT].flatten(0, 1).permute(0, 2, 3, 1)
    rows = pictures.reshape(-1, COLUMNS, IMAGE_SIZE, IMAGE_SIZE, 3).transpose(1, 2)
    sheet = rows.reshape(-1, COLUMNS * IMAGE_SIZE, 3).numpy()
    Image.fromarray(sheet).save(SHEET, lossless=True, quality=100, method=6)


if __name__ == "__main__":
    main()
