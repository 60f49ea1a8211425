"""The UNet with classifier-free guidance, in micro-batches."""

from typing import Any

import torch
from torch import Tensor


class Denoiser:
    """Predicts with a diffusers UNet, a micro-batch at a time.

    Args:
        unet: A `UNet2DConditionModel`.
        condition: Text embeddings of every particle, [N, tokens, width].
        unconditional: Text embeddings of the negative prompt, [1, tokens, width]; None for no
            guidance.
        guidance_scale: w of w * conditional + (1 - w) * unconditional (Ho & Salimans 2022,
            arXiv:2207.12598).
        micro_batch_size: How many particles go through the UNet at once.
    """

    def __init__(
        self,
        unet: Any,
        condition: Tensor,
        unconditional: Tensor | None,
        guidance_scale: float,
        micro_batch_size: int,
    ):
        self.unet = unet
        self.condition = condition
        self.unconditional = unconditional
        self.guidance_scale = guidance_scale
        self.micro_batch_size = micro_batch_size

    def __call__(self, model_input: Tensor, timestep: Tensor) -> Tensor:
        """Returns the guided model output [N, C, H, W] for scaled noisy latents."""
        outputs = [
            self._guided(latents, timestep, condition)
            for latents, condition in zip(
                model_input.split(self.micro_batch_size),
                self.condition.split(self.micro_batch_size),
                strict=True,
            )
        ]
        return torch.cat(outputs)

    def _guided(self, latents: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        if self.unconditional is None:
            return self.unet(latents, timestep, encoder_hidden_states=condition).sample
        text = torch.cat([self.unconditional.expand_as(condition), condition])
        both = self.unet(torch.cat([latents, latents]), timestep, encoder_hidden_states=text).sample
        unconditional, conditional = both.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)
