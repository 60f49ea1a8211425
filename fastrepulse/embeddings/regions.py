"""Differences between regions of the latent: where things are, whatever their colour."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from fastrepulse.embeddings.base import Embedding, register


@register
class Halves(Embedding):
    """Left minus right and top minus bottom, d = 2 C: makes composition different."""

    name = "halves"

    def __call__(self, latents: Tensor) -> Tensor:
        quarters = adaptive_avg_pool2d(latents, 2)  # [N, C, 2, 2]
        left_right = (quarters[..., 0] - quarters[..., 1]).mean(dim=-1)
        top_bottom = (quarters[..., 0, :] - quarters[..., 1, :]).mean(dim=-1)
        return torch.cat([left_right, top_bottom], dim=1)


@register
class Thirds(Embedding):
    """Differences between neighbouring cells of a 3x3 grid, d = 12 C: the rule of thirds."""

    name = "thirds"

    def __call__(self, latents: Tensor) -> Tensor:
        cells = adaptive_avg_pool2d(latents, 3)  # [N, C, 3, 3]
        return torch.cat([cells.diff(dim=2).flatten(1), cells.diff(dim=3).flatten(1)], dim=1)
