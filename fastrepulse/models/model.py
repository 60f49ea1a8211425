"""A text-to-image latent diffusion model: its parts, and what the sampler asks of them."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastrepulse.models.prompts import check_words, chunks_of
from fastrepulse.models.text import Text, encode, encode_xl

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass(frozen=True, eq=False)
class Model:
    """A Stable Diffusion 1, 2 or XL type model, ready to run.

    Args:
        name: Where it came from.
        unet: `UNet2DConditionModel`.
        vae: `AutoencoderKL`.
        text_encoder: `CLIPTextModel`.
        tokenizer: `CLIPTokenizer`.
        scheduler_config: The configuration of the scheduler it was trained with.
        text_encoder_2: The second text encoder of Stable Diffusion XL,
            `CLIPTextModelWithProjection`.
        tokenizer_2: Its tokenizer.
        zeros_for_empty: Whether an empty negative prompt is zeros in place of its text embeddings.
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
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    zeros_for_empty: bool = False
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

    def fingerprint(self) -> str:
        """Returns a checksum of the names, the shapes and some values of all weights."""
        parts = [
            (f"{name} {tuple(tensor.shape)}", tensor.detach()[:1].flatten()[:64].float())
            for network in (self.unet, self.vae, self.text_encoder, self.text_encoder_2)
            if network is not None
            for name, tensor in network.named_parameters()
        ]
        names = zlib.crc32("\n".join(name for name, _ in parts).encode())
        values = torch.cat([values for _, values in parts]).cpu().contiguous()
        return f"{zlib.crc32(values.numpy().data, names):08x}"

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Text:
        """Returns text embeddings.

        Says by a warning what of a prompt is cut off, and which words the model never learnt.

        Args:
            prompts: Any number of them.
            chunks: How often the text encoder's length they may have (`chunks_of`).
        """
        check_words(prompts, self.vocabulary)
        tokenizers, encoders = self._text_models()
        if self.text_encoder_2 is None:
            return encode(tokenizers[0], encoders[0], prompts, chunks)
        return encode_xl(tokenizers, encoders, prompts, chunks)

    def chunks_of(self, prompts: Sequence[str]) -> int:
        """Returns in how many chunks, as long as the text encoder takes, all prompts fit whole."""
        return max(
            chunks_of(tokenizer, prompts, encoder.config.max_position_embeddings)
            for tokenizer, encoder in zip(*self._text_models(), strict=True)
        )

    def size_ids(self, height: int, width: int) -> Tensor | None:
        """Returns the size and the crop that a UNet of Stable Diffusion XL is told, [6].

        They are original height and width, top and left of the crop, and the target's height and
        width, in pixels (Podell et al. 2023, arXiv:2307.01952).
        """
        if self.text_encoder_2 is None:
            return None
        ids = (height, width, 0, 0, height, width)
        return torch.tensor(ids, dtype=self.dtype, device=self.device)

    def _text_models(self) -> tuple[list[Any], list[Any]]:
        """Returns the tokenizers and the text encoders."""
        if self.text_encoder_2 is None:
            return [self.tokenizer], [self.text_encoder]
        return [self.tokenizer, self.tokenizer_2], [self.text_encoder, self.text_encoder_2]

    def encode(self, pictures: Tensor) -> Tensor:
        """Returns the latents [N, C, H / 8, W / 8] of pictures [N, 3, H, W] in [0, 1]."""
        distribution = self.vae.encode(pictures * 2 - 1).latent_dist
        return distribution.mode() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Returns pictures [N, 3, 8 H, 8 W] (by the model's own factor) in [0, 1]."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pictures = self.vae.decode(scaled).sample
        return (pictures / 2 + 0.5).clamp(0, 1)
