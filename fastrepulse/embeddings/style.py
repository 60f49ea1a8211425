"""Features of a style classifier that was trained on noisy latents."""

from torch import Tensor

from fastrepulse.default_model.style_classifier import load_style_classifier
from fastrepulse.embeddings.base import Embedding, register
from fastrepulse.embeddings.patterns import Thirds


@register
class Style(Embedding):
    """Features before the last layer of the shipped model's style classifier, d = 64.

    Makes colours, backgrounds and shapes different, for any subject. The network has 0.1 M weights
    and takes a twentieth of the time of the shipped model's guided step. It was trained on the
    shipped model's latents at every noise level and does not suit another model's latents.
    """

    name = "style_classifier"

    def __init__(self) -> None:
        self._network = load_style_classifier()
        self._sigma = 0.0

    def prepare(self, seed: int, step: int, sigma: float) -> None:
        self._sigma = sigma

    def __call__(self, latents: Tensor) -> Tensor:
        return self.feature_map(latents).mean(dim=(2, 3))

    def feature_map(self, latents: Tensor) -> Tensor:
        """Returns the features before averaging over positions, [N, 64, H / 2, W / 2].

        Raises:
            ValueError: If the latents do not have four channels, as the shipped model's have.
        """
        if latents.shape[1] != 4:
            raise ValueError(
                f"{self.name} was trained on latents of 4 channels, got {latents.shape[1]}"
            )
        # Only if needed: `Module.to` crashes inside a torch.func transform (torch 2.13)
        if self._network.heads.weight.device != latents.device:
            self._network.to(latents.device)
        weight = self._network.heads.weight
        sigma = weight.new_full(latents.shape[:1], self._sigma)
        return self._network.feature_map(latents.to(weight.dtype), sigma).to(latents.dtype)


@register
class StyleThirds(Embedding):
    """`Thirds` of the style classifier's feature map, d = 768: makes the layout of style different.

    It costs as much as the style classifier alone.
    """

    name = "style_thirds"

    def __init__(self) -> None:
        self.style, self.thirds = Style(), Thirds()

    def prepare(self, seed: int, step: int, sigma: float) -> None:
        self.style.prepare(seed, step, sigma)

    def __call__(self, latents: Tensor) -> Tensor:
        return self.thirds(self.style.feature_map(latents))
