"""The UNet with classifier-free guidance, in micro-batches of one size, compiled where it pays."""

import logging
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

COMPILE_FROM = 600
"""Forward passes of a micro-batch from which compiling repays itself: it takes about a minute."""

log = logging.getLogger("fastrepulse")


class Denoiser:
    """Predicts with a diffusers UNet, a micro-batch at a time.

    Where it is compiled every forward pass has the same shape, the last micro-batch being padded,
    so that one graph serves any number of particles. A micro-batch that runs out of GPU memory is
    halved, for good.

    Args:
        unet: A `UNet2DConditionModel`.
        text: Text embeddings of every prompt, [prompts, tokens, width].
        negative: Those of the negative prompt, [1, tokens, width]; None for no guidance.
        guidance_scale: w of w * conditional + (1 - w) * unconditional (Ho & Salimans 2022,
            arXiv:2207.12598).
        micro_batch_size: How many particles go through the UNet at once.
        compiled: Whether to run the UNet through `torch.compile`.
    """

    def __init__(
        self,
        unet: Any,
        text: Tensor,
        negative: Tensor | None,
        guidance_scale: float,
        micro_batch_size: int,
        compiled: bool,
    ):
        self.text = text
        self.negative = negative
        self.guidance_scale = torch.tensor(guidance_scale, dtype=text.dtype, device=text.device)
        self.micro_batch_size = micro_batch_size
        self.compiled = compiled
        self._plain, self._guided = _forwards(unet, compiled)

    @property
    def device(self) -> torch.device:
        """Where the UNet runs."""
        return self.text.device

    def __call__(
        self, model_input: Tensor, timestep: Tensor, text: Tensor, guided: bool = True
    ) -> Tensor:
        """Returns the model output [n, C, H, W], n at most the micro-batch size.

        Args:
            model_input: Scaled noisy latents, [n, C, H, W].
            timestep: A scalar tensor.
            text: Each particle's text embeddings, [n, tokens, width].
            guided: Whether to guide; without a negative prompt nothing does.
        """
        size = self.micro_batch_size
        if len(model_input) > size:
            parts = zip(model_input.split(size), text.split(size), strict=True)
            return torch.cat([self(part, timestep, own, guided) for part, own in parts])
        padding = size - len(model_input) if self.compiled else 0
        padded = torch.cat([model_input, model_input[:1].expand(padding, -1, -1, -1)])
        given = torch.cat([text, text[:1].expand(padding, -1, -1)])
        output = None
        try:
            if self.negative is None or not guided:
                output = self._plain(padded, timestep, given, self.guidance_scale)
            else:
                both = torch.cat([self.negative.expand_as(given), given])
                output = self._guided(padded, timestep, both, self.guidance_scale)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if output is None:
            # Not while the error is handled, which keeps what the pass had allocated
            self.micro_batch_size = size // 2
            torch.cuda.empty_cache()
            log.warning("out of memory: micro-batches of %d particles now", self.micro_batch_size)
            return self(model_input, timestep, text, guided)
        # A copy: the next run of a CUDA graph writes where this one's output lies
        return output[: len(model_input)].clone()


def repays_compiling(num_particles: int, num_inference_steps: int, micro_batch_size: int) -> bool:
    """Says whether a run is long enough for `torch.compile` to save more time than it takes."""
    return -(-num_particles // micro_batch_size) * num_inference_steps >= COMPILE_FROM


@lru_cache(maxsize=4)
def _forwards(unet: Any, compiled: bool) -> tuple[Forward, Forward]:
    """Returns the forward pass without guidance and that with it; what is compiled is kept."""

    def plain(latents: Tensor, timestep: Tensor, text: Tensor, _: Tensor) -> Tensor:
        return unet(latents, timestep, encoder_hidden_states=text, return_dict=False)[0]

    def guided(latents: Tensor, timestep: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        both = plain(torch.cat([latents, latents]), timestep, text, scale)
        unconditional, conditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    if not compiled:
        return plain, guided
    # Graphs replayed as a whole, where there is a GPU to launch kernels on
    how: dict[str, Any] = {"mode": "reduce-overhead"} if unet.device.type == "cuda" else {}
    one, two = (torch.compile(f, fullgraph=True, dynamic=False, **how) for f in (plain, guided))
    return one, two


def choose_micro_batch_size(unet: Any, latent_shape: tuple[int, int, int]) -> int:
    """Returns how many particles go through a UNet at once, by the memory that is free.

    A guided particle is reckoned at 60 times the activations of the UNet's first layer, and a
    quarter of the free memory is used; a power of two, at most 32.
    """
    _, height, width = latent_shape
    activations = height * width * unet.config.block_out_channels[0]
    particle = 60 * activations * torch.finfo(unet.dtype).bits // 8
    return 2 ** min(5, int(math.log2(max(1, free_memory(unet.device) // 4 // particle))))


def choose_storage(device: torch.device, count: int, latent_shape: tuple[int, int, int]) -> str:
    """Returns where all latents lie: on the device, or on the host if they crowd the device.

    The loop holds four sets of them at most, in up to four bytes a number.
    """
    size = 16 * count * math.prod(latent_shape)
    crowded = device.type == "cuda" and size > free_memory(device) // 4
    return "cpu" if crowded else str(device)


def free_memory(device: torch.device) -> int:
    """Returns the bytes that are free on a GPU, or on the host, caches of files included.

    Where a host does not say, which Linux alone does, it is taken to have 4 GB.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return 4 * 2**30
    sizes = dict(line.split(":") for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024
