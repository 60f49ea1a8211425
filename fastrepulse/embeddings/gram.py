"""Gram matrices of feature maps, which describe style."""

from torch import Tensor

from fastrepulse.embeddings.base import Embed, Embedding, build, register
from fastrepulse.metrics.spaces import gram


@register
class Gram(Embedding):
    """The upper triangle of F F^T / (h w) of a feature map F [F, h w], d = F (F + 1) / 2.

    Makes style different: which features occur together, at any position (Gatys et al. 2015,
    arXiv:1508.06576). The default feature map is random_cnn's (F = 64, d = 2,080), with new weights
    at every step; Gram costs little more than random_cnn alone.

    Args:
        embedding: Source of the feature map: "random_cnn", "style_classifier", "latent", or a
            function from latents [N, C, H, W] to feature maps [N, F, h, w].

    Raises:
        ValueError: If the embedding has no feature map.
    """

    name = "gram"
    strength = 1.0

    def __init__(self, embedding: str | Embed = "random_cnn"):
        self.inner = build(embedding)
        if self.inner.name != "random_cnn":
            self.name = f"gram({self.inner.name})"
            self.strength = self.inner.strength
        if isinstance(embedding, (str, Embedding)) and not hasattr(self.inner, "feature_map"):
            raise ValueError(f"embedding must have a feature map, {self.inner.name!r} has none")

    def prepare(self, seed: int, step: int, sigma: float) -> None:
        self.inner.prepare(seed, step, sigma)

    def __call__(self, latents: Tensor) -> Tensor:
        maps = getattr(self.inner, "feature_map", self.inner)(latents)
        if maps.ndim != 4:
            raise ValueError(
                f"{self.inner.name} must return feature maps [N, F, h, w], got {list(maps.shape)}"
            )
        return gram(maps)
