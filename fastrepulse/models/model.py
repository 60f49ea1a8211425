"""A text-to-image latent diffusion model: its parts, and what the sampler asks of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastrepulse.models.prompts import check_words, tokenize

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}


@dataclass(frozen=True, eq=False)
class Model:
    """A Stable Diffusion 1 or 2 type model, ready to run.

    Args:
        name: Where it came from.
        unet: `UNet2DConditionModel`.
        vae: `AutoencoderKL`.
        text_encoder: `CLIPTextModel`.
        tokenizer: `CLIPTokenizer`.
        scheduler_config: The configuration of the scheduler it was trained with.
        variants: The variant of each part's weights, such as {"unet": "fp16"}, where it is not the
            plain one.
        vocabulary: The words that it knows, where they are few.
        forwards: Its UNet's forward passes, compiled or not, kept as long as the model.
    """

    name: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict[str, Any]
    variants: dict[str, str] = field(default_factory=dict)
    vocabulary: frozenset[str] | None = None
    forwards: dict[bool, tuple[Callable, Callable]] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Returns [C, H, W] of the latents of a picture, by default of the model's own size.

        Raises:
            ValueError: If a side is not a positive multiple of `vae_scale_factor`.
            TypeError: If a side is not an int.
        """
        factor, native = self.vae_scale_factor, self.unet.config.sample_size
        sides = []
        for name, pixels in (("height", height), ("width", width)):
            pixels = native * factor if pixels is None else pixels
            if isinstance(pixels, bool) or not isinstance(pixels, int):
                raise TypeError(f"{name} must be an int or None, got {pixels!r}")
            if pixels <= 0 or pixels % factor:
                raise ValueError(f"{name} must be a positive multiple of {factor}, got {pixels}")
            sides.append(pixels // factor)
        return self.unet.config.in_channels, sides[0], sides[1]

    def scheduler(self, name: str, num_inference_steps: int) -> Any:
        """Returns a fresh diffusers scheduler with its timesteps set.

        Raises:
            ValueError: If there are as many steps as the model was trained with, or more.
        """
        import diffusers

        longest = self.scheduler_config.get("num_train_timesteps", 1000)
        if num_inference_steps >= longest:
            raise ValueError(
                f"num_inference_steps must be below {longest}, got {num_inference_steps}"
            )
        # As diffusers' pipeline sets them, whatever an old folder says
        config = {**self.scheduler_config, "steps_offset": 1, "clip_sample": False}
        scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(config)
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        return scheduler

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Returns text embeddings [len(prompts), tokens, width].

        Says by a warning what of a prompt is cut off, and which words the model never learnt.
        """
        check_words(prompts, self.vocabulary)
        longest = self.text_encoder.config.max_position_embeddings
        tokens = tokenize(self.tokenizer, prompts, longest)
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]

    def encode(self, pictures: Tensor) -> Tensor:
        """Returns the latents [N, C, H / 8, W / 8] of pictures [N, 3, H, W] in [0, 1]."""
        distribution = self.vae.encode(pictures * 2 - 1).latent_dist
        return distribution.mode() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Returns pictures [N, 3, 8 H, 8 W] (by the model's own factor) in [0, 1]."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pictures = self.vae.decode(scaled).sample
        return (pictures / 2 + 0.5).clamp(0, 1)
