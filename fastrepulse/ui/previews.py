"""What a run is heading for, shown while it goes on, at next to no cost."""

import time

import torch
from PIL import Image
from torch import Tensor

from fastrepulse.embeddings.colour import SHIPPED_RGB, fit_rgb
from fastrepulse.models import DEFAULT_MODEL, Model
from fastrepulse.sampling.output import to_pil

SHARE = 0.05
"""The most of a run's time that previews take."""


class Previews:
    """Pictures of predicted clean latents, by a linear map to colours where there is one.

    The shipped model has one; another's is fitted to the first pictures that it decodes, and until
    then its decoder draws the previews, as often as it costs little.

    Args:
        model: Whose latents.
    """

    def __init__(self, model: Model):
        self.model = model
        shipped = model.name == str(DEFAULT_MODEL)
        self._rgb: Tensor | None = torch.tensor(SHIPPED_RGB) if shipped else None
        self.restart()

    def restart(self) -> None:
        """Begins a run."""
        self._began, self._spent = time.monotonic(), 0.0

    def of(self, latents: Tensor) -> list[Image.Image] | None:
        """Returns a picture of each of the latents [N, C, H, W]; None if it is too early for it."""
        now = time.monotonic()
        if self._spent > SHARE * (now - self._began):
            return None
        if self._rgb is None:
            images = to_pil(self.model.decode(latents.to(self.model.device)))
        else:
            factor = self.model.vae_scale_factor
            images = [
                image.resize((factor * image.width, factor * image.height))
                for image in to_pil(coloured(latents, self._rgb))
            ]
        self._spent += time.monotonic() - now
        return images

    def learn(self, latents: Tensor, pictures: Tensor) -> None:
        """Fits the map to latents [N, C, H, W] and their pictures [N, 3, s H, s W], if need be."""
        if self._rgb is None:
            self._rgb = fit_rgb(latents.float().cpu(), pictures.float().cpu())


def coloured(latents: Tensor, rgb: Tensor) -> Tensor:
    """Returns the colours [N, 3, H, W] in [0, 1] of latents, by a linear map [3, C + 1]."""
    rgb = rgb.to(latents)
    colours = torch.einsum("oc,nchw->nohw", rgb[:, :-1], latents) + rgb[:, -1, None, None]
    return colours.clamp(0, 1)
