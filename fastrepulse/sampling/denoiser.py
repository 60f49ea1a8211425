"""The UNet with classifier-free guidance, in micro-batches of one size, optionally compiled."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrepulse.models.text import Text
from fastrepulse.out_of_memory import in_batches, ran_out

Forward = Callable[..., Tensor]

COMPILE_FROM = {"cuda": 600}
"""Number of forward passes from which compiling repays its time, by device type.

On a CPU it never does (bench/results/throughput.md). The number for GPUs is an estimate."""

log = logging.getLogger("fastrepulse")


class Denoiser:
    """Runs a diffusers UNet with classifier-free guidance, one micro-batch at a time.

    If the UNet is compiled, every forward pass has the same shape: the last micro-batch is padded,
    so one graph serves any number of particles. If torch cannot compile it, it runs uncompiled. If
    a micro-batch runs out of memory, this and all later micro-batches are halved. Only the UNet
    runs in its own dtype. Guidance and output are in the dtype of the latents, since a score is a
    small difference divided by sigma^2.

    Args:
        unet: A `UNet2DConditionModel`.
        text: Text embeddings of every prompt.
        negative: Text embeddings of every negative prompt, of the same shape; None for no guidance.
        guidance_scale: w of w * conditional + (1 - w) * unconditional (Ho & Salimans 2022,
            arXiv:2207.12598).
        micro_batch_size: Number of particles that go through the UNet at once.
        compiled: Whether to run the UNet through `torch.compile`.
        forwards: Cache of forward functions, compiled ones included.
        size_ids: The image size as a UNet of Stable Diffusion XL takes it, [6].
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
        """Device of the UNet."""
        return self.text.tokens.device

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
            guided: Whether to use guidance, if there is a negative prompt.
        """

        forward = partial(self._forward, timestep, guided)
        rows = (model_input, text, prompts)
        try:
            outputs = list(in_batches(forward, rows, self.micro_batch_size, self._halve))
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        except Exception as error:
            if not self.compiled or ran_out(error) or not _cannot_compile(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        self.compiled = False
        log.warning("torch cannot compile the UNet, which runs uncompiled: %s", reason)
        return self(model_input, timestep, text, prompts, guided)

    def _halve(self, size: int) -> None:
        """Sets the micro-batch size after an out-of-memory error."""
        self.micro_batch_size = size
        log.warning("out of memory: micro-batches of %d particles now", size)

    def _forward(
        self, timestep: Tensor, guided: bool, latents: Tensor, text: Tensor, prompts: Tensor
    ) -> Tensor:
        """Returns the output of one pass, padded to the micro-batch size if it is compiled."""
        count = len(latents)
        padding = self.micro_batch_size - count if self.compiled else 0
        pooled = None if self.text.pooled is None else self.text.pooled[prompts]
        given = [_padded(text, padding), _padded(pooled, padding)]
        latents = _padded(latents, padding)
        if self.compiled not in self._forwards:
            self._forwards[self.compiled] = _forwards_of(self._unet, self.compiled)
        plain, with_guidance = self._forwards[self.compiled]
        if self.negative is None or not guided:
            output = plain(latents, timestep, *given, self.guidance_scale, self.size_ids)
        else:
            negative = self.negative.of(prompts)
            both = [
                None if own is None else torch.cat([_padded(other, padding), own])
                for own, other in zip(given, (negative.tokens, negative.pooled), strict=True)
            ]
            output = with_guidance(latents, timestep, *both, self.guidance_scale, self.size_ids)
        # A copy, since the next run of a CUDA graph overwrites this output
        return output[:count].clone()


def repays_compiling(
    num_particles: int, num_inference_steps: int, micro_batch_size: int, device_type: str
) -> bool:
    """Whether a run is long enough for `torch.compile` to save more time than it takes."""
    forwards = -(-num_particles // micro_batch_size) * num_inference_steps
    return forwards >= COMPILE_FROM.get(device_type, math.inf)


def _padded(rows: Tensor | None, count: int) -> Any:
    """Returns rows [n, ...] padded by `count` copies of the first row; None stays None."""
    if rows is None or count == 0:
        return rows
    return torch.cat([rows, rows[:1].expand(count, *rows.shape[1:])])


def _cannot_compile(error: BaseException) -> bool:
    """Whether an error is from torch.compile: no compiler, or too many recompilations."""
    modules = [kind.__module__ for kind in type(error).__mro__]
    return any(module.startswith(("torch._dynamo", "torch._inductor")) for module in modules)


def _forwards_of(unet: Any, compiled: bool) -> tuple[Forward, Forward]:
    """Returns the forward functions without and with guidance."""

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
    # CUDA graphs on a GPU
    how: dict[str, Any] = {"mode": "reduce-overhead"} if unet.device.type == "cuda" else {}
    one, two = (torch.compile(f, fullgraph=True, dynamic=False, **how) for f in (plain, guided))
    return one, two
