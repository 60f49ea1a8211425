"""Reference pictures for samples: rendered pictures in which all values are equally common.

200 pictures of each subject ship as `rendered.webp`, which `training/render.py` writes.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.judge import load_classifier, to_judged_size
from fastrepulse.default_model.subjects import IMAGE_SIZE, SUBJECTS
from fastrepulse.metrics.patches import PatchReference

SHEET = Path(__file__).parent / "rendered.webp"
PER_SUBJECT = 200
COLUMNS = 40
HELD_OUT = 16
"""Pictures of each subject that calibrate the distance `off_data` to 1."""


@cache
def rendered_pictures(data: Path | None = None) -> Tensor:
    """Returns held-out rendered pictures, uint8 [subjects, M, 3, 64, 64].

    `data` is a folder with `heldout.npz` from `training/render.py`; None for the shipped pictures.
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
        # The classifier's inputs are in [-1, 1]
        chunks = [classifier.embed(p / 127.5 - 1) for p in pictures.flatten(0, 1).split(256)]
    return torch.cat(chunks).view(*pictures.shape[:2], -1)


def off_data(images: Sequence[Image.Image], subject: Subject) -> float:
    """Returns the distance of images to rendered pictures of the subject; lower is cleaner.

    This is the mean distance of patches to the nearest patch of a rendered picture
    (`metrics.PatchReference`), divided by the same distance of held-out rendered pictures.
    Artefacts increase it, diversity does not.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reference, heldout = _reference(SUBJECTS.index(subject), device)
    return reference.distance(to_judged_size(images).to(device)).mean().item() / heldout


@cache
def _reference(subject: int, device: str) -> tuple[PatchReference, float]:
    """Returns the reference of a subject and the distance of its held-out pictures."""
    pictures = (rendered_pictures()[subject] / 255).to(device)
    reference = PatchReference(pictures[HELD_OUT:])
    return reference, reference.distance(pictures[:HELD_OUT]).mean().item()
