"""From a request and a model to a loop that is ready to run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrepulse.methods.base import Share
from fastrepulse.models import Model
from fastrepulse.models.text import Text
from fastrepulse.sampling.denoiser import Denoiser, repays_compiling
from fastrepulse.sampling.loop import DenoiseLoop
from fastrepulse.sampling.memory import Budget
from fastrepulse.sampling.request import Request

PROMPTS_AT_ONCE = 64
"""How many prompts go through the text encoder at once."""


def prepare(
    request: Request, model: Model, noise: Tensor, share: Share, start: int = 0
) -> DenoiseLoop:
    """Returns the loop of a request.

    Args:
        request: What is asked for.
        model: The model, loaded.
        noise: Of unit variance, for the particles that are here, [n, C, H, W].
        share: Which they are among all.
        start: The number of the step to begin with.
    """
    stepper = model.scheduler(request.scheduler, request.num_inference_steps)
    budget = budget_of(request, model, noise)
    denoise = denoiser(request, model, noise.shape, budget)
    dtype = torch.promote_types(model.dtype, torch.float32)
    return DenoiseLoop(
        noise.to(budget.storage, dtype) * stepper.init_noise_sigma,
        denoise,
        stepper,
        request.acting_method,
        num_particles=request.num_particles,
        seed=request.noise_seed,
        guidance_window=request.guidance_window,
        micro_batch_size=denoise.micro_batch_size,
        corrections=request.corrections,
        start=start,
        share=share,
    )


def budget_of(request: Request, model: Model, latents: Tensor) -> Budget:
    """Returns what the run of some latents [n, C, H, W] may take of the memory."""
    shape = latents.shape[1:]
    return Budget(model, len(latents), shape, request.memory_bytes, request.scheduler)


def denoiser(request: Request, model: Model, shape: Sequence[int], budget: Budget) -> Denoiser:
    """Returns the model's UNet with the prompts, for latents of a shape [n, C, H, W]."""
    count, _, height, width = shape
    size = request.micro_batch_size or budget.micro_batch_size()
    size = min(size, count)
    compiled = request.compile
    if compiled == "auto":
        steps = request.num_inference_steps
        compiled = repays_compiling(count, steps, size, model.device.type)
    text, negative = _texts(request, model)
    factor = model.vae_scale_factor
    size_ids = model.size_ids(height * factor, width * factor)
    return Denoiser(
        model.unet,
        text,
        negative,
        request.guidance_scale,
        size,
        compiled,
        model.forwards,
        size_ids,
    )


def _texts(request: Request, model: Model) -> tuple[Text, Text | None]:
    """Returns the text embeddings of all prompts, and those that guidance leads away from."""
    guided = request.guidance_scale > 1
    everything = [*request.prompts, *(request.negative_prompts if guided else [])]
    chunks = model.chunks_of(everything) if request.long_prompts == "chunks" else 1
    text = _encoded(model, request.prompts, chunks)
    if not guided:
        return text, None
    negative = _encoded(model, request.negative_prompts, chunks)
    if model.zeros_for_empty:
        negative = negative.zeroed([not prompt for prompt in request.negative_prompts])
    return text, negative


def _encoded(model: Model, prompts: Sequence[str], chunks: int) -> Text:
    """Returns the text embeddings of prompts, each of which is encoded once."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    texts = list(numbers)
    starts = range(0, len(texts), PROMPTS_AT_ONCE)
    parts = [texts[start : start + PROMPTS_AT_ONCE] for start in starts]
    text = Text.cat([model.encode_prompts(part, chunks) for part in parts])
    return text.of([numbers[prompt] for prompt in prompts]).to(model.dtype)
