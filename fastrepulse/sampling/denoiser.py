"""The UNet with classifier-free guidance, in micro-batches of one size, compiled where it pays."""

import logging
from collections.abc import Callable
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
    halved, for good. The UNet alone runs in its own dtype: latents, guidance and the output are in
    that of the latents, since a score is a small difference over sigma^2.

    Args:
        unet: A `UNet2DConditionModel`.
        text: Text embeddings of every prompt, [prompts, tokens, width].
        negative: Those of every prompt's negative prompt, of the same shape; None for no guidance.
        guidance_scale: w of w * conditional + (1 - w) * unconditional (Ho & Salimans 2022,
            arXiv:2207.12598).
        micro_batch_size: How many particles go through the UNet at once.
        compiled: Whether to run the UNet through `torch.compile`.
        forwards: Where the UNet's forward passes are kept, what was compiled among them.
    """

    def __init__(
        self,
        unet: Any,
        text: Tensor,
        negative: Tensor | None,
        guidance_scale: float,
        micro_batch_size: int,
        compiled: bool,
        forwards: dict[bool, tuple[Forward, Forward]] | None = None,
    ):
        self.text = text
        self.negative = negative
        dtype = torch.promote_types(text.dtype, torch.float32)
        self.guidance_scale = torch.tensor(guidance_scale, dtype=dtype, device=text.device)
        self.micro_batch_size = micro_batch_size
        self.compiled = compiled
        self._unet = unet
        self._forwards = {} if forwards is None else forwards
        if compiled not in self._forwards:
            self._forwards[compiled] = _forwards_of(unet, compiled)
        self._plain, self._guided = self._forwards[compiled]

    @property
    def device(self) -> torch.device:
        """Where the UNet runs."""
        return self.text.device

    def uncompiled(self) -> "Denoiser":
        """Returns the same without `torch.compile`."""
        scale, size = self.guidance_scale.item(), self.micro_batch_size
        return Denoiser(self._unet, self.text, self.negative, scale, size, False, self._forwards)

    def __call__(
        self,
        model_input: Tensor,
        timestep: Tensor,
        text: Tensor,
        prompts: Tensor,
        guided: bool = True,
    ) -> Tensor:
        """Returns the model output [n, C, H, W], n at most the micro-batch size.

        Args:
            model_input: Scaled noisy latents, [n, C, H, W].
            timestep: A scalar tensor.
            text: Each particle's text embeddings, [n, tokens, width].
            prompts: The number of each particle's prompt, [n].
            guided: Whether to guide; without a negative prompt nothing does.
        """
        size = self.micro_batch_size
        if len(model_input) > size:
            parts = zip(*(x.split(size) for x in (model_input, text, prompts)), strict=True)
            return torch.cat([self(x, timestep, own, of, guided) for x, own, of in parts])
        padding = size - len(model_input) if self.compiled else 0
        padded = torch.cat([model_input, model_input[:1].expand(padding, -1, -1, -1)])
        given = torch.cat([text, text[:1].expand(padding, -1, -1)])
        output = None
        try:
            if self.negative is None or not guided:
                output = self._plain(padded, timestep, given, self.guidance_scale)
            else:
                negative = self.negative[prompts]
                filled = torch.cat([negative, negative[:1].expand(padding, -1, -1)])
                both = torch.cat([filled, given])
                output = self._guided(padded, timestep, both, self.guidance_scale)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if output is None:
            # Not while the error is handled, which keeps what the pass had allocated
            self.micro_batch_size = size // 2
            torch.cuda.empty_cache()
            log.warning("out of memory: micro-batches of %d particles now", self.micro_batch_size)
            return self(model_input, timestep, text, prompts, guided)
        # A copy: the next run of a CUDA graph writes where this one's output lies
        return output[: len(model_input)].clone()


def repays_compiling(num_particles: int, num_inference_steps: int, micro_batch_size: int) -> bool:
    """Says whether a run is long enough for `torch.compile` to save more time than it takes."""
    return -(-num_particles // micro_batch_size) * num_inference_steps >= COMPILE_FROM


def _forwards_of(unet: Any, compiled: bool) -> tuple[Forward, Forward]:
    """Returns the forward pass without guidance and that with it."""

    def plain(latents: Tensor, timestep: Tensor, text: Tensor, _: Tensor) -> Tensor:
        given = latents.to(unet.dtype)
        output = unet(given, timestep, encoder_hidden_states=text, return_dict=False)[0]
        return output.to(latents.dtype)

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
