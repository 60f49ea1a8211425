"""One run: a loop from the arguments, then its steps, then the images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastrepulse.layers import accelerated
from fastrepulse.methods.base import Partition
from fastrepulse.methods.defaults import RunFacts
from fastrepulse.models import Model
from fastrepulse.models.text import Text
from fastrepulse.sampling.checkpoint import Checkpoints
from fastrepulse.sampling.decode import decode
from fastrepulse.sampling.denoiser import Denoiser, repays_compiling
from fastrepulse.sampling.loop import DenoiseLoop
from fastrepulse.sampling.memory import Budget
from fastrepulse.sampling.request import Computing, Drawing, Output
from fastrepulse.sampling.results import SampleResult, StepEnd
from fastrepulse.schedule import NoiseSchedule

PROMPTS_AT_ONCE = 64
"""Number of prompts that go through the text encoder at once."""


def new_loop(
    drawing: Drawing, computing: Computing, model: Model, noise: Tensor, partition: Partition
) -> DenoiseLoop:
    """Returns the loop of a run, at its first step.

    Args:
        drawing: What is drawn.
        computing: How it is computed.
        model: The loaded model.
        noise: Unit noise of this rank's particles, [n, C, H, W].
        partition: Which particles of the run these are.
    """
    scheduler = model.scheduler(drawing.scheduler, drawing.num_inference_steps)
    budget = _budget(drawing, computing, model, noise)
    size = int(min(computing.micro_batch_size or budget.micro_batch_size(), len(noise)))
    compiled = computing.compile
    if compiled == "auto":
        steps = drawing.num_inference_steps
        compiled = repays_compiling(len(noise), steps, size, model.device.type)
    text, negative = _text_embeddings(drawing, model)
    height, width = (side * model.vae_scale_factor for side in noise.shape[2:])
    denoiser = Denoiser(
        model.unet,
        text,
        negative,
        drawing.guidance_scale,
        size,
        compiled,
        model.forwards,
        model.size_ids(height, width),
    )
    method = drawing.active_method
    if method is not None:
        sigmas = NoiseSchedule.of(scheduler).sigmas[:-1]
        method = method.for_run(RunFacts(noise.shape[2], noise.shape[3], sigmas, drawing.guided))
    dtype = torch.promote_types(model.dtype, torch.float32)
    return DenoiseLoop(
        noise.to(budget.storage, dtype) * scheduler.init_noise_sigma,
        denoiser,
        scheduler,
        method,
        num_particles=drawing.num_particles,
        seed=drawing.noise_seed,
        micro_batch_size=size,
        corrections=drawing.corrections,
        partition=partition,
    )


def run(
    drawing: Drawing,
    computing: Computing,
    output: Output,
    model: Model,
    loop: DenoiseLoop,
    checkpoints: Checkpoints,
    settings: dict[str, Any],
) -> SampleResult:
    """Takes the remaining steps of a loop and decodes the images."""

    def after_step(loop: DenoiseLoop) -> None:
        checkpoints.after_step(loop)
        if output.callback_on_step_end is not None:
            done, total = loop.steps()
            output.callback_on_step_end(StepEnd(done, total, loop.denoised, loop.diagnostics[-1]))

    with accelerated(model.unet, computing.attention), _progress(loop, output.progress) as bar:
        diagnostics = loop.run(after_step, bar.update)
    result = SampleResult([], loop.x, diagnostics, settings)
    budget = _budget(drawing, computing, model, loop.x)
    with checkpoints.guarding(loop):
        return decode(model, result, loop.partition, output.folder, budget, output.progress)


@contextmanager
def _progress(loop: DenoiseLoop, shown: bool) -> Iterator[tqdm]:
    """Yields a bar that counts this rank's model passes and shows the images of all ranks."""
    (done, total), local = loop.passes(), len(loop.x)
    with tqdm(
        desc="denoise",
        total=total * local,
        initial=done * local,
        unit_scale=loop.partition.count / local / max(total, 1),
        unit="img",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} "
        "[{elapsed}<{remaining}, {rate_fmt}]",
        disable=not shown,
    ) as bar:
        yield bar


def _budget(drawing: Drawing, computing: Computing, model: Model, latents: Tensor) -> Budget:
    """Returns the memory budget of a run with latents [n, C, H, W]."""
    shape = latents.shape[1:]
    return Budget(model, len(latents), shape, computing.memory_bytes, drawing.scheduler)


def _text_embeddings(drawing: Drawing, model: Model) -> tuple[Text, Text | None]:
    """Returns the text embeddings of all prompts, and of all negative prompts with guidance."""
    everything = [*drawing.prompts, *(drawing.negative_prompts if drawing.guided else [])]
    chunks = model.chunks_of(everything) if drawing.long_prompts == "chunks" else 1
    text = _encoded(model, drawing.prompts, chunks)
    if not drawing.guided:
        return text, None
    negative = _encoded(model, drawing.negative_prompts, chunks)
    if model.zeros_for_empty:
        negative = negative.zeroed([not prompt for prompt in drawing.negative_prompts])
    return text, negative


def _encoded(model: Model, prompts: Sequence[str], chunks: int) -> Text:
    """Returns the text embeddings of prompts; equal prompts are encoded once."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    texts = list(numbers)
    starts = range(0, len(texts), PROMPTS_AT_ONCE)
    parts = [texts[start : start + PROMPTS_AT_ONCE] for start in starts]
    text = Text.cat([model.encode_prompts(part, chunks) for part in parts])
    return text.of([numbers[prompt] for prompt in prompts]).to(model.dtype)
