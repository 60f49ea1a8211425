"""Previews of the images during a run."""

import time

import torch
from PIL import Image
from torch import Tensor

from fastrepulse.embeddings.colour import SHIPPED_RGB, fit_rgb
from fastrepulse.models import DEFAULT_MODEL, Model
from fastrepulse.sampling.output import to_pil

SHARE = 0.05
"""Largest share of a run's time that previews may take."""


class Previews:
    """Draws previews of predicted clean latents with a linear map from latents to colours.

    The map of the shipped model is known. Other models get a map fitted to their first decoded
    images; until then the decoder draws the previews.
    """

    def __init__(self, model: Model):
        self.model = model
        shipped = model.name == str(DEFAULT_MODEL)
        self._rgb: Tensor | None = torch.tensor(SHIPPED_RGB) if shipped else None
        self.restart()

    def restart(self) -> None:
        """Resets the time accounting for a new run."""
        self._began, self._spent = time.monotonic(), 0.0

    def of(self, latents: Tensor) -> list[Image.Image] | None:
        """Returns a preview of each of the latents [N, C, H, W], or None to save time."""
        now = time.monotonic()
        if self._spent > SHARE * (now - self._began):
            return None
        if self._rgb is None:
            images = to_pil(self.model.decode(latents.to(self.model.device)))
        else:
            factor = self.model.vae_scale_factor
            images = [
                image.resize((factor * image.width, factor * image.height))
                for image in to_pil(latents_to_rgb(latents, self._rgb))
            ]
        self._spent += time.monotonic() - now
        return images

    def learn(self, latents: Tensor, images: Tensor) -> None:
        """Fits an unknown map to latents [N, C, H, W] and their images [N, 3, s H, s W]."""
        if self._rgb is None:
            self._rgb = fit_rgb(latents.float().cpu(), images.float().cpu())


def latents_to_rgb(latents: Tensor, rgb: Tensor) -> Tensor:
    """Returns colours [N, 3, H, W] in [0, 1] of latents by a linear map [3, C + 1]."""
    rgb = rgb.to(latents)
    colours = torch.einsum("oc,nchw->nohw", rgb[:, :-1], latents) + rgb[:, -1, None, None]
    return colours.clamp(0, 1)
