"""A text-to-image latent diffusion model: its networks, and how to call them."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastrepulse.checks import is_integer
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
    """A Stable Diffusion 1, 2 or XL model, ready to run.

    Args:
        name: The folder, file, hub id or pipeline that the model was loaded from.
        unet: `UNet2DConditionModel`.
        vae: `AutoencoderKL` or `AutoencoderTiny`.
        text_encoder: `CLIPTextModel`.
        tokenizer: `CLIPTokenizer`.
        scheduler_config: The configuration of the training scheduler.
        text_encoder_2: Stable Diffusion XL's second text encoder, `CLIPTextModelWithProjection`.
        tokenizer_2: The tokenizer of the second text encoder.
        zeros_for_empty: Whether an empty negative prompt has zeros as its text embeddings.
        variants: The variants of the weights, such as {"unet": "fp16"}; parts without a named
            variant are left out.
        vocabulary: All words that the model knows; None if it knows any word.
        forwards: The UNet's forward passes, compiled (True) or not (False), cached here.
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
        """Returns [C, H, W] of an image's latents; None stands for the model's native size.

        Raises:
            ValueError: If a size is not a positive multiple of `vae_scale_factor`.
            TypeError: If a size is not an int.
        """
        factor, native = self.vae_scale_factor, self.unet.config.sample_size
        sizes = [native, native] if isinstance(native, int) else native
        sides = []
        for name, pixels, size in zip(("height", "width"), (height, width), sizes, strict=True):
            pixels = size * factor if pixels is None else pixels
            if not is_integer(pixels):
                raise TypeError(f"{name} must be an int or None, got {pixels!r}")
            if pixels <= 0 or pixels % factor:
                raise ValueError(f"{name} must be a positive multiple of {factor}, got {pixels}")
            sides.append(pixels // factor)
        return self.unet.config.in_channels, sides[0], sides[1]

    def scheduler(self, name: str, num_inference_steps: int) -> Any:
        """Returns a new diffusers scheduler with its timesteps set.

        Raises:
            ValueError: If there are not fewer steps than training timesteps.
        """
        import diffusers

        trained = self.scheduler_config.get("num_train_timesteps", 1000)
        if num_inference_steps >= trained:
            raise ValueError(
                f"num_inference_steps must be below {trained}, got {num_inference_steps}"
            )
        # diffusers' pipeline overrides these two values of old configurations too
        config = {**self.scheduler_config, "steps_offset": 1, "clip_sample": False}
        scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(config)
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        return scheduler

    def fingerprint(self) -> str:
        """Returns a checksum of the names, the shapes and some values of all weights."""
        names: list[str] = []
        values = [torch.zeros(0, device=self.device)]
        for network in (self.unet, self.vae, self.text_encoder, self.text_encoder_2):
            on_disk = _is_on_disk(network)
            for name, tensor in () if network is None else network.named_parameters():
                names.append(f"{name} {tuple(tensor.shape)}")
                inner = () if on_disk else _plain_tensors(tensor.detach())
                values += [each[:1].flatten()[:64].float() for each in inner]
        checksum = zlib.crc32("\n".join(names).encode())
        return f"{zlib.crc32(torch.cat(values).cpu().contiguous().numpy().data, checksum):08x}"

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Text:
        """Returns text embeddings.

        A warning names the end of a prompt that is cut off, and words that the model never learnt.

        Args:
            prompts: Any number of prompts.
            chunks: Longest prompt, in multiples of the text encoder's length (see `chunks_of`).
        """
        check_words(prompts, self.vocabulary)
        tokenizers, encoders = self._text_models()
        if self.text_encoder_2 is None:
            return encode(tokenizers[0], encoders[0], prompts, chunks)
        return encode_xl(tokenizers, encoders, prompts, chunks)

    def chunks_of(self, prompts: Sequence[str]) -> int:
        """Returns how many chunks of the text encoder's length the longest prompt needs."""
        return max(
            chunks_of(tokenizer, encoder, prompts)
            for tokenizer, encoder in zip(*self._text_models(), strict=True)
        )

    def size_ids(self, height: int, width: int) -> Tensor | None:
        """Returns the size condition of Stable Diffusion XL's UNet, [6]; None for other models.

        It has the original height and width, the top and left of the crop, and the target height
        and width, in pixels (Podell et al. 2023, arXiv:2307.01952).
        """
        if self.text_encoder_2 is None:
            return None
        ids = (height, width, 0, 0, height, width)
        return torch.tensor(ids, dtype=self.dtype, device=self.device)

    def _text_models(self) -> tuple[list[Any], list[Any]]:
        if self.text_encoder_2 is None:
            return [self.tokenizer], [self.text_encoder]
        return [self.tokenizer, self.tokenizer_2], [self.text_encoder, self.text_encoder_2]

    def encode(self, images: Tensor) -> Tensor:
        """Returns the latents [N, C, H / f, W / f] of images [N, 3, H, W] in [0, 1].

        f is `vae_scale_factor`.
        """
        mean, std = self._statistics()
        encoded = self.vae.encode(images * 2 - 1)
        # A tiny autoencoder predicts no distribution
        has_mode = hasattr(encoded, "latent_dist")
        latents = encoded.latent_dist.mode() if has_mode else encoded.latents
        return (latents - mean) * self.vae.config.scaling_factor / std

    def decode(self, latents: Tensor) -> Tensor:
        """Returns images [N, 3, f H, f W] in [0, 1]; f is `vae_scale_factor`."""
        mean, std = self._statistics()
        scaled = latents.to(self.vae.dtype) * std / self.vae.config.scaling_factor + mean
        images = self.vae.decode(scaled).sample
        return (images / 2 + 0.5).clamp(0, 1)

    def _statistics(self) -> tuple[Tensor | float, Tensor | float]:
        """Returns mean and standard deviation of the autoencoder's latents, [C, 1, 1] or 0 and 1.

        Only Stable Diffusion XL's pipeline in diffusers obeys them.
        """
        config = self.vae.config
        given = [getattr(config, name, None) for name in ("latents_mean", "latents_std")]
        if self.text_encoder_2 is None or None in given:
            return 0.0, 1.0
        mean, std = torch.tensor(given, dtype=self.vae.dtype, device=self.vae.device)
        return mean[:, None, None], std[:, None, None]


def _is_on_disk(network: Any) -> bool:
    """Whether diffusers keeps the weights of a network on the disk between their uses."""
    modules = () if network is None else network.modules()
    hooks = (getattr(module, "_diffusers_hook", None) for module in modules)
    groups = (
        getattr(hook, "group", None) for each in hooks if each for hook in each.hooks.values()
    )
    return any(getattr(group, "offload_to_disk_path", None) for group in groups)


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yields a tensor, or the tensors that a tensor subclass holds, such as quantised weights.

    Nothing is yielded for a subclass that does not tell them by torch's protocol.
    """
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    elif type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        yield torch.atleast_1d(tensor.as_subclass(Tensor))
