"""The judge: a classifier of subjects and attributes in images of the shipped model.

It was trained on rendered pictures with and without artefacts, never on samples
(`training/judge.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.subjects import IMAGE_SIZE, SUBJECTS
from fastrepulse.metrics.diversity import vendi_score_of_kernel
from fastrepulse.metrics.spaces import SPACES, to_pictures
from fastrepulse.torch_settings import undisturbed

WEIGHTS = Path(__file__).parent / "classifier.safetensors"
HEADS = [(subject, attribute) for subject in SUBJECTS for attribute in subject.attributes]
"""All pairs (subject, attribute), in the order of the logits."""


class Classifier(nn.Module):
    """A small convolutional network with one head for the subject and one for each attribute."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128), feature_dim: int = 128):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i, width in enumerate(widths):
            for stride in (2, 1) if i == 0 else (1, 2):
                layers += [
                    nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.SiLU(),
                ]
                before = width
        self.body = nn.Sequential(*layers)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16 * before, feature_dim), nn.SiLU())
        self.subject = nn.Linear(feature_dim, len(SUBJECTS))
        self.sizes = [len(attribute.values) for _, attribute in HEADS]
        self.attributes = nn.Linear(feature_dim, sum(self.sizes))

    def embed(self, pictures: Tensor) -> Tensor:
        """Returns features [N, 128] of images [N, 3, 64, 64] in [-1, 1]."""
        return self.features(self.body(pictures))

    def forward(self, pictures: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the logits of the subject [N, S] and of each head in `HEADS`."""
        features = self.embed(pictures)
        return self.subject(features), self.attributes(features).split(self.sizes, dim=1)


@cache
@undisturbed()
def load_classifier() -> Classifier:
    classifier = Classifier().eval().float()
    classifier.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return classifier


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Converts PIL images to a tensor [N, 3, 64, 64] in [-1, 1]."""
    return 2 * to_judged_size(images) - 1


def to_judged_size(images: Sequence[Image.Image]) -> Tensor:
    """Converts PIL images to a tensor [N, 3, 64, 64] in [0, 1]; larger ones are averaged down."""
    return adaptive_avg_pool2d(to_pictures(images), IMAGE_SIZE)


@torch.no_grad()
def spaces_of(images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """Returns the judge's features of images in each space: [N, 128], [N, 256] and [N, 64]."""
    classifier, parts = load_classifier(), []
    for chunk in to_tensor(images).split(64):
        # The feature maps of the third and the fifth convolution
        style = classifier.body[:9](chunk)
        location = classifier.body[9:15](style)
        content = classifier.features(classifier.body[15:](location))
        parts.append((content, location.mean(dim=1).flatten(1), style.mean(dim=(2, 3))))
    return dict(zip(SPACES, map(torch.cat, zip(*parts, strict=True)), strict=True))


@torch.no_grad()
def features_of(images: Sequence[Image.Image]) -> Tensor:
    """Returns the judge's features of images, [N, 128]."""
    classifier = load_classifier()
    return torch.cat([classifier.embed(chunk) for chunk in to_tensor(images).split(256)])


@torch.no_grad()
def judge(images: Sequence[Image.Image]) -> list[tuple[Subject, dict[str, str]]]:
    """Returns the subject and the attributes of each image."""
    classifier = load_classifier()
    verdicts = []
    for chunk in to_tensor(images).split(256):
        subjects, heads = classifier(chunk)
        values = [logits.argmax(dim=1) for logits in heads]
        for i, index in enumerate(subjects.argmax(dim=1).tolist()):
            subject = SUBJECTS[index]
            shown = {
                attribute.name: attribute.values[value[i]]
                for (owner, attribute), value in zip(HEADS, values, strict=True)
                if owner is subject
            }
            verdicts.append((subject, shown))
    return verdicts


def attribute_vendi(shown: Sequence[Mapping[str, str]]) -> float:
    """Returns the effective number of different images by their attributes.

    This is the Vendi score (Friedman & Dieng 2023, arXiv:2210.02410) of the kernel k_ij = share of
    attributes with the same value in images i and j. Artefacts such as mottle or confetti are not
    attributes and cannot raise it. `shown` has the attributes of each image of one subject; without
    images the score is 0.
    """
    if not shown:
        return 0.0
    agreements = [[sum(a[name] == b[name] for name in a) / len(a) for b in shown] for a in shown]
    return vendi_score_of_kernel(torch.tensor(agreements, dtype=torch.float64))


def attribute_coverage(shown: Sequence[Mapping[str, str]], subject: Subject, count: int) -> float:
    """Returns the share of values that appear, averaged over attributes, in [0, 1].

    For each attribute, this is the number of values that appear, over the smaller of the number of
    all values and the number of images. `count` includes images of other subjects.
    """
    shares = [
        len({attributes[a.name] for attributes in shown}) / min(len(a.values), count)
        for a in subject.attributes
    ]
    return sum(shares) / len(shares)


def most_common_share(shown: Sequence[Mapping[str, str]], subject: Subject) -> float:
    """Returns the share of the most common value, averaged over attributes; 0 without images."""
    if not shown:
        return 0.0
    counts = [Counter(attributes[a.name] for attributes in shown) for a in subject.attributes]
    return sum(max(c.values()) for c in counts) / (len(counts) * len(shown))
