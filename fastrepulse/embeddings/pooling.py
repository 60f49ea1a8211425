"""Averages of the latent: over everything, over a grid, or not at all."""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from fastrepulse.embeddings.base import Embedding, register


@register
class ChannelMean(Embedding):
    """The average of each latent channel, d = C: makes overall colour and brightness different."""

    name = "channel_mean"

    def __call__(self, latents: Tensor) -> Tensor:
        return latents.mean(dim=(2, 3))


@register
class Pooled(Embedding):
    """The latent averaged over a 4x4 grid, d = 16 C: makes coarse layout and colour different."""

    name = "pooled"
    grid = 4

    def __call__(self, latents: Tensor) -> Tensor:
        return adaptive_avg_pool2d(latents, self.grid).flatten(1)


@register
class Latent(Embedding):
    """The latent itself, d = C H W.

    In so many dimensions all pairs are about equally far apart, so every kernel weight comes out
    near 1 / N and the force is little more than "away from the mean of the batch".
    """

    name = "latent"

    def __call__(self, latents: Tensor) -> Tensor:
        return latents.flatten(1)
