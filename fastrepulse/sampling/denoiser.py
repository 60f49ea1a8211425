"""The UNet with classifier-free guidance, in micro-batches of one size, compiled where it pays."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastrepulse.models.text import Text
from fastrepulse.out_of_memory import ran_out

Forward = Callable[..., Tensor]

COMPILE_FROM = {"cuda": 600}
"""Forward passes of a micro-batch from which compiling repays itself, by the kind of device.

Never on a CPU, where the native kernels do as much (bench/results/throughput.md); for a GPU nobody
has measured it."""

log = logging.getLogger("fastrepulse")


class Denoiser:
    """Predicts with a diffusers UNet, a micro-batch at a time.

    Where it is compiled every forward pass has the same shape, the last micro-batch being padded,
    so that one graph serves any number of particles; where torch cannot compile it, it runs
    uncompiled. A micro-batch that runs out of memory is halved, for good. The UNet alone runs in
    its own dtype: latents, guidance and the output are in that of the latents, since a score is a
    small difference over sigma^2.

    Args:
        unet: A `UNet2DConditionModel`.
        text: Text embeddings of every prompt.
        negative: Those of every prompt's negative prompt, of the same shape; None for no guidance.
        guidance_scale: w of w * conditional + (1 - w) * unconditional (Ho & Salimans 2022,
            arXiv:2207.12598).
        micro_batch_size: How many particles go through the UNet at once.
        compiled: Whether to run the UNet through `torch.compile`.
        forwards: Where the UNet's forward passes are kept, what was compiled among them.
        size_ids: What a UNet of Stable Diffusion XL is told of the picture's size, [6].
    """

    def __init__(
        self,
        unet: Any,
        text: Text,
        negative: Text | None,
        guidance_scale: float,
        micro_batch_size: int,
        compiled: bool,
        forwards: dict[bool, tuple[Forward, Forward]] | None = None,
        size_ids: Tensor | None = None,
    ):
        self.text = text
        self.negative = negative
        dtype = torch.promote_types(text.tokens.dtype, torch.float32)
        self.guidance_scale = torch.tensor(guidance_scale, dtype=dtype, device=self.device)
        self.micro_batch_size = micro_batch_size
        self.compiled = compiled
        self.size_ids = size_ids
        self._unet = unet
        self._forwards = {} if forwards is None else forwards

    @property
    def device(self) -> torch.device:
        """Where the UNet runs."""
        return self.text.tokens.device

    def uncompiled(self) -> "Denoiser":
        """Returns the same without `torch.compile`."""
        return Denoiser(
            self._unet,
            self.text,
            self.negative,
            self.guidance_scale.item(),
            self.micro_batch_size,
            False,
            self._forwards,
            self.size_ids,
        )

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
        output, halve = None, False
        try:
            output = self._forward(model_input, timestep, text, prompts, guided)
        except Exception as error:
            halve = ran_out(error)
            if not (size > 1 if halve else self.compiled and _cannot_compile(error)):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if output is None:
            # Not while the error is handled, which keeps what the pass had allocated
            if halve:
                self.micro_batch_size = size // 2
                torch.cuda.empty_cache()
                log.warning("out of memory: micro-batches of %d particles now", size // 2)
            else:
                self.compiled = False
                log.warning("torch cannot compile the UNet, which runs uncompiled: %s", reason)
            return self(model_input, timestep, text, prompts, guided)
        # A copy: the next run of a CUDA graph writes where this one's output lies
        return output[: len(model_input)].clone()

    def _forward(
        self, model_input: Tensor, timestep: Tensor, text: Tensor, prompts: Tensor, guided: bool
    ) -> Tensor:
        """Returns the output of one pass, padded to the micro-batch size if it is compiled."""
        padding = self.micro_batch_size - len(model_input) if self.compiled else 0
        pooled = None if self.text.pooled is None else self.text.pooled[prompts]
        given = [_padded(text, padding), _padded(pooled, padding)]
        latents = _padded(model_input, padding)
        if self.compiled not in self._forwards:
            self._forwards[self.compiled] = _forwards_of(self._unet, self.compiled)
        plain, with_guidance = self._forwards[self.compiled]
        if self.negative is None or not guided:
            return plain(latents, timestep, *given, self.guidance_scale, self.size_ids)
        negative = self.negative.of(prompts)
        both = [
            None if own is None else torch.cat([_padded(other, padding), own])
            for own, other in zip(given, (negative.tokens, negative.pooled), strict=True)
        ]
        return with_guidance(latents, timestep, *both, self.guidance_scale, self.size_ids)


def repays_compiling(
    num_particles: int, num_inference_steps: int, micro_batch_size: int, device_type: str
) -> bool:
    """Says whether a run is long enough for `torch.compile` to save more time than it takes."""
    forwards = -(-num_particles // micro_batch_size) * num_inference_steps
    return forwards >= COMPILE_FROM.get(device_type, math.inf)


def _padded(rows: Tensor | None, count: int) -> Any:
    """Returns rows [n, ...] with the first one `count` times more; None stays None."""
    if rows is None or count == 0:
        return rows
    return torch.cat([rows, rows[:1].expand(count, *rows.shape[1:])])


def _cannot_compile(error: BaseException) -> bool:
    """Says whether an error is torch.compile's own: no compiler, or too many compiled already."""
    modules = [kind.__module__ for kind in type(error).__mro__]
    return any(module.startswith(("torch._dynamo", "torch._inductor")) for module in modules)


def _forwards_of(unet: Any, compiled: bool) -> tuple[Forward, Forward]:
    """Returns the forward pass without guidance and that with it."""

    def plain(
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        pooled: Tensor | None,
        _: Tensor,
        size_ids: Tensor | None,
    ) -> Tensor:
        more = {}
        if pooled is not None and size_ids is not None:
            ids = size_ids.expand(len(pooled), -1)
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
        given = latents.to(unet.dtype)
        output = unet(given, timestep, encoder_hidden_states=text, return_dict=False, **more)[0]
        return output.to(latents.dtype)

    def guided(
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        pooled: Tensor | None,
        scale: Tensor,
        size_ids: Tensor | None,
    ) -> Tensor:
        both = plain(torch.cat([latents, latents]), timestep, text, pooled, scale, size_ids)
        unconditional, conditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    if not compiled:
        return plain, guided
    # Graphs replayed as a whole, where there is a GPU to launch kernels on
    how: dict[str, Any] = {"mode": "reduce-overhead"} if unet.device.type == "cuda" else {}
    one, two = (torch.compile(f, fullgraph=True, dynamic=False, **how) for f in (plain, guided))
    return one, two
