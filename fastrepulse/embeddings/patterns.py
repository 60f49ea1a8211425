"""Linear embeddings: inner products of each latent channel with a few fixed patterns."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrepulse.embeddings.base import REFERENCE_SIDE, Embedding, register


class Patterns(Embedding):
    """Inner products of every latent channel with F patterns over its positions, d = F C.

    The latent is averaged over a grid of `cells` x `cells`; `mix` [F, cells^2] has the weights of
    the averages in each pattern. The Jacobian of this linear map is the patterns themselves, so
    pulling a force back needs no graph.
    """

    cells: int
    mix: np.ndarray

    def __call__(self, latents: Tensor) -> Tensor:
        return (latents.flatten(2) @ self._patterns(latents).T).flatten(1)

    def vjp(self, latents: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        latents = latents.detach().float()
        patterns = self._patterns(latents)

        def pull_back(force: Tensor) -> Tensor:
            by_channel = force.float().unflatten(1, (-1, len(patterns)))  # [N, C, F]
            return (by_channel @ patterns).view_as(latents)

        return self(latents), pull_back

    def length_factor(self, height: int, width: int) -> float:
        return REFERENCE_SIDE / math.sqrt(height * width)

    def _patterns(self, latents: Tensor) -> Tensor:
        """Returns the patterns [F, H W] for the size of the latents, on their device."""
        height, width = latents.shape[2:]
        kind: Any = type(self)
        return make_patterns(kind, height, width, latents.device, latents.dtype)


# Outlives the embedding: each step builds a new one from its name
@lru_cache(maxsize=64)
def make_patterns(
    embedding: type[Patterns], height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns an embedding's patterns [F, H W]: sums of averages over cells, weighted by `mix`."""
    cells = embedding.cells
    grid = np.einsum("rh,cw->rchw", averages(height, cells), averages(width, cells))
    patterns = embedding.mix.astype(np.float32) @ grid.reshape(cells**2, height * width)
    if not patterns.any():
        raise ValueError(
            f"embedding {embedding.name!r} compares parts of an image, so latents must be larger, "
            f"got {height}x{width}: use 'channel_mean'"
        )
    # Autograd cannot save a tensor that was made in inference mode
    with torch.inference_mode(False):
        return torch.from_numpy(patterns).to(device, dtype)


def averages(length: int, cells: int) -> np.ndarray:
    """Returns a matrix [cells, length] that averages over `cells` intervals of equal length.

    A position on a border belongs to both intervals, as in adaptive average pooling.
    """
    matrix = np.zeros((cells, length), np.float32)
    for cell in range(cells):
        start, end = cell * length // cells, -(-(cell + 1) * length // cells)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix


@register
class ChannelMean(Patterns):
    """The average of each latent channel, d = C: makes overall colour and brightness different."""

    name = "channel_mean"
    cells = 1
    mix = np.eye(1)


@register
class Pooled(Patterns):
    """The latent averaged over a 4x4 grid, d = 16 C: makes coarse layout and colour different."""

    name = "pooled"
    cells = 4
    mix = np.eye(16)


@register
class Halves(Patterns):
    """Left minus right and top minus bottom, d = 2 C: makes composition different."""

    name = "halves"
    cells = 2
    mix = np.array([[0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5]])


@register
class Thirds(Patterns):
    """Differences between adjacent cells of a 3x3 grid, d = 12 C: makes composition different."""

    name = "thirds"
    cells = 3
    # A cell minus its neighbour above, then a cell minus its neighbour on the left
    mix = np.eye(9)[[3, 4, 5, 6, 7, 8, 1, 2, 4, 5, 7, 8]]
    mix = mix - np.eye(9)[[0, 1, 2, 3, 4, 5, 0, 1, 3, 4, 6, 7]]


@register
class Latent(Embedding):
    """The latent itself, d = C H W.

    In so many dimensions all pairs are about equally far apart. All kernel weights are then near
    1 / N, and the force points away from the mean of the batch.
    """

    name = "latent"

    def __call__(self, latents: Tensor) -> Tensor:
        return latents.flatten(1)

    def feature_map(self, latents: Tensor) -> Tensor:
        """Returns the latents [N, C, H, W] as they are."""
        return latents
