"""A convolutional network with random weights, drawn again at every step."""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, leaky_relu

from fastrepulse.embeddings.base import Embedding, register
from fastrepulse.noise import step_generator


@register
class RandomCNN(Embedding):
    """Features of three random convolutions, d = 64: makes structure at every scale different.

    New weights at each step keep the repulsion from acting on one projection for long. They depend
    on the seed and the step, so a run can be repeated.
    """

    name = "random_cnn"
    # Most of this push is of high frequency, and the model removes it
    strength = 1.0
    widths = (32, 64, 64)

    def __init__(self) -> None:
        self.prepare(0, 0, 0.0)

    def prepare(self, seed: int, step: int, sigma: float) -> None:
        self._draw = (seed, step)
        self._weights: dict[tuple[int, torch.device, torch.dtype], list[Tensor]] = {}

    def __call__(self, latents: Tensor) -> Tensor:
        return self.feature_map(latents).mean(dim=(2, 3))

    def feature_map(self, latents: Tensor) -> Tensor:
        """Returns the features before averaging over positions, [N, 64, H / 8, W / 8]."""
        features = latents
        for weight in self._weights_for(latents):
            features = leaky_relu(conv2d(features, weight, stride=2, padding=1), 0.2)
        return features

    def _weights_for(self, latents: Tensor) -> list[Tensor]:
        """Returns the weights of this step, drawn for its first micro-batch and then kept."""
        channels = latents.shape[1]
        key = channels, latents.device, latents.dtype
        if key not in self._weights:
            generator, weights = step_generator(*self._draw), []
            for width in self.widths:
                shape = width, channels, 3, 3
                weight = torch.randn(shape, generator=generator, dtype=torch.float32)
                weights.append(weight.to(latents) * math.sqrt(2 / (channels * 9)))
                channels = width
            self._weights[key] = weights
        return self._weights[key]
