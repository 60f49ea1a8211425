"""A classifier of colours and shapes from the shipped model's latents at any noise level.

It was trained on latents of rendered pictures, never on samples (`training/style_classifier.py`).
"""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, silu

from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.torch_settings import undisturbed

WEIGHTS = Path(__file__).parent / "style_classifier.safetensors"
ASPECTS = {
    "colour": ("colour", "pot colour", "hills", "upper stones"),
    "background": ("background", "sky"),
    "shape": ("build", "shape", "height", "pot shape"),
    "surface": ("surface",),
}
"""The classified aspects, and the names of their attributes in all subjects."""

WORDS = {
    aspect: tuple(
        dict.fromkeys(
            word
            for subject in SUBJECTS
            for attribute in subject.attributes
            if attribute.name in names
            for word in attribute.values
        )
    )
    for aspect, names in ASPECTS.items()
}
"""The words of each aspect in the order of the logits; subjects share words such as "blue"."""


class Block(nn.Module):
    """Two convolutions; the noise level scales and shifts the output of the first."""

    def __init__(self, channels: int, width: int, level_width: int):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.modulation = nn.Linear(level_width, 2 * width)

    def forward(self, features: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.modulation(level)[:, :, None, None].chunk(2, dim=1)
        features = silu(self.first_norm(self.first(features)) * (1 + scale) + shift)
        return silu(self.second_norm(self.second(features)))


class StyleClassifier(nn.Module):
    """A small network similar to VGG (Simonyan & Zisserman 2015, arXiv:1409.1556).

    It is conditioned on the noise level by the angle arctan(sigma), the mixing angle of clean
    latents and noise in latents of unit variance.
    """

    def __init__(self, channels: int = 4, widths: tuple[int, int, int] = (32, 48, 64)):
        super().__init__()
        inputs = (channels, *widths[:-1])
        self.blocks = nn.ModuleList(
            Block(before, width, 8) for before, width in zip(inputs, widths, strict=True)
        )
        self.sizes = [len(words) for words in WORDS.values()]
        self.heads = nn.Linear(widths[-1], sum(self.sizes))

    def feature_map(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """Returns features [N, 64, H / 2, W / 2] of latents [N, 4, H, W] with noise sigma [N]."""
        angle = torch.atan(sigma)[:, None] * torch.arange(1, 5).to(sigma)
        level = torch.cat([angle.cos(), angle.sin()], dim=1)
        features = latents / (1 + sigma**2).sqrt()[:, None, None, None]
        for i, block in enumerate(self.blocks):
            features = block(features, level)
            if i == 0:
                features = max_pool2d(features, 2, ceil_mode=True)
        return features

    def forward(self, latents: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits of each aspect."""
        features = self.feature_map(latents, sigma).mean(dim=(2, 3))
        return self.heads(features).split(self.sizes, dim=1)


@cache
@undisturbed()
def load_style_classifier() -> StyleClassifier:
    classifier = StyleClassifier().eval().float().requires_grad_(False)
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier
