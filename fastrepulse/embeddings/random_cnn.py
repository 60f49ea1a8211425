"""A convolutional network of random weights, drawn afresh at every step."""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, leaky_relu

from fastrepulse.embeddings.base import Embedding, register
from fastrepulse.noise import step_generator


@register
class RandomCNN(Embedding):
    """Features of three random convolutions, d = 64: makes structure at every scale different.

    No single projection is repelled in for long, because the weights are drawn anew at each step
    (from the seed and the step, so a run can be repeated).
    """

    name = "random_cnn"
    # The model cleans most of the push away, which is of high frequency
    strength = 1.0
    widths = (32, 64, 64)

    def __init__(self) -> None:
        self._draw = (0, 0)

    def prepare(self, seed: int, step: int, sigma: float) -> None:
        self._draw = (seed, step)

    def __call__(self, latents: Tensor) -> Tensor:
        return self.feature_map(latents).mean(dim=(2, 3))

    def feature_map(self, latents: Tensor) -> Tensor:
        """Returns the features [N, 64, H / 8, W / 8] before they are averaged over positions."""
        generator = step_generator(*self._draw)
        features = latents
        for width in self.widths:
            fan_in = features.shape[1] * 9
            shape = width, features.shape[1], 3, 3
            weight = torch.randn(shape, generator=generator, dtype=torch.float32)
            weight = weight.to(latents) * math.sqrt(2 / fan_in)
            features = leaky_relu(conv2d(features, weight, stride=2, padding=1), 0.2)
        return features
