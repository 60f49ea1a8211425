"""The average colour of the picture, by a linear map from latents."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from fastrepulse.embeddings.base import Embedding, register

SHIPPED_RGB = (
    (0.3323, 0.1742, 0.5831, -0.1185, 0.6258),
    (-0.4594, -0.6752, -0.6301, 0.0224, 0.4503),
    (-0.3365, -0.3156, -0.1599, 0.1097, 0.5301),
)
"""The shipped model's map [3, C + 1]: `fit_rgb` of the 3,200 held-out rendered pictures and their
latents. It explains 94, 92 and 97% of the variance of their average red, green and blue."""


def fit_rgb(latents: Tensor, pictures: Tensor) -> Tensor:
    """Returns the linear map [3, C + 1] from a latent (and 1) to its colour, by least squares.

    Args:
        latents: [N, C, H, W], of a model's own pictures: `result.latents` of a call or several.
        pictures: What they decode to, [N, 3, s H, s W] in [0, 1].

    Raises:
        ValueError: If the two are not of as many pictures, or of unlike shapes.
    """
    count, _, height, width = latents.shape
    scale = pictures.shape[-1] // width
    if not scale or pictures.shape != (count, 3, scale * height, scale * width):
        raise ValueError(
            f"pictures must be [N, 3, s H, s W] of latents {list(latents.shape)}, "
            f"got {list(pictures.shape)}"
        )
    cells = adaptive_avg_pool2d(pictures.double(), (height, width))
    colours = cells.movedim(1, -1).flatten(0, 2)  # [N H W, 3]
    values = latents.to(colours).movedim(1, -1).flatten(0, 2)  # [N H W, C]
    values = torch.cat([values, values.new_ones(len(values), 1)], dim=1)
    return torch.linalg.lstsq(values, colours).solution.mT.float()


@register
class DecodedMean(Embedding):
    """The average colour of the picture, d = 3, as cheap as an average of the latents.

    Makes the picture's overall colour different, as the eye sees it. The map from latents to RGB is
    linear and per position; `image(average_colour, decode)` takes the decoder itself, and is dear.

    Args:
        rgb: The map [3, C + 1] that `fit_rgb` returned; by default the shipped model's.

    Raises:
        ValueError: If it is not [3, C + 1].
    """

    name = "decoded_mean"

    def __init__(self, rgb: Tensor | None = None):
        self.rgb = torch.as_tensor(SHIPPED_RGB if rgb is None else rgb)
        if self.rgb.ndim != 2 or len(self.rgb) != 3:
            raise ValueError(f"rgb must be [3, C + 1], got {list(self.rgb.shape)}")
        if rgb is not None:
            self.name = f"decoded_mean({', '.join(f'{x:.4g}' for x in self.rgb.flatten())})"

    def __call__(self, latents: Tensor) -> Tensor:
        weight, bias = self._map(latents)
        return latents.mean(dim=(2, 3)) @ weight.mT + bias

    def _map(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weight [3, C] and the bias [3], of the latents' dtype and device."""
        channels = self.rgb.shape[1] - 1
        if latents.shape[1] != channels:
            raise ValueError(
                f"{self.name} needs latents of {channels} channels, got {latents.shape[1]}"
            )
        rgb = self.rgb.to(latents)
        return rgb[:, :-1], rgb[:, -1]
