"""Loads the rendered pictures and their labels for training."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.judge import HEADS
from fastrepulse.default_model.subjects import SUBJECTS

UNNAMED = -100
"""The label of a missing attribute; the cross entropy ignores it."""


def load_pictures(file: Path) -> Tensor:
    """Returns the pictures of a split, uint8 [M, 3, 64, 64]."""
    with np.load(file) as data:
        return torch.from_numpy(data["pictures"]).permute(0, 3, 1, 2)


def to_float(pictures: Tensor) -> Tensor:
    """Scales uint8 pictures to [-1, 1]."""
    return pictures.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def describe(data: Path, split: str) -> list[tuple[Subject, dict[str, str]]]:
    """Returns the subject and the attributes of each picture of a split."""
    with np.load(data / f"{split}.npz") as arrays:
        subjects = [SUBJECTS[i] for i in arrays["subjects"]]
    drawn = json.loads((data / f"{split}.json").read_text())
    return [
        (subject, subject.attributes_of(options))
        for subject, options in zip(subjects, drawn, strict=True)
    ]


def load_labels(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Returns the subjects [M] and the labels of the judge's heads, or UNNAMED, [M, heads]."""
    described = describe(data, split)
    subjects = torch.tensor([SUBJECTS.index(subject) for subject, _ in described])
    labels = torch.full((len(described), len(HEADS)), UNNAMED)
    for i, (subject, shown) in enumerate(described):
        for h, (owner, attribute) in enumerate(HEADS):
            if owner is subject and attribute.name in shown:
                labels[i, h] = attribute.values.index(shown[attribute.name])
    return subjects, labels
