"""`sample()`: a prompt in, N different images out."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastrepulse.checks import plain
from fastrepulse.methods.base import Method
from fastrepulse.models import Model, load_model
from fastrepulse.sampling.checkpoint import Checkpoints, about_run
from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.distributed import Ranks
from fastrepulse.sampling.own_loop import keeps_its_loop, sample_in_own_loop
from fastrepulse.sampling.request import Computing, Drawing, Output
from fastrepulse.sampling.results import SampleResult, StepEnd
from fastrepulse.sampling.run import new_loop, run
from fastrepulse.torch_settings import undisturbed

_last_loaded: list[Model] = []
"""The model that was loaded last, which the next call reuses."""


@undisturbed()
def sample(
    prompt: str | Sequence[str],
    num_particles: int = Drawing.num_particles,
    *,
    model: Any = None,
    repulsion: Method | str | None = Drawing.repulsion,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | Sequence[str] | None = "",
    height: int | None = None,
    width: int | None = None,
    scheduler: str = Drawing.scheduler,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    latents: Tensor | None = None,
    corrections: Sequence[Correction] = (),
    long_prompts: Literal["cut", "chunks"] = Drawing.long_prompts,
    micro_batch_size: int | None = None,
    memory: int | str | None = None,
    compile: bool | Literal["auto"] = Computing.compile,
    attention: Literal["auto", "sdpa", "xformers", "math"] = Computing.attention,
    group: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    out: str | Path | None = None,
    checkpoint_every: float | None = Output.checkpoint_every,
    callback_on_step_end: Callable[[StepEnd], None] | None = None,
    progress: bool = Output.progress,
) -> SampleResult:
    """Draws N images of a prompt together, so that they differ from each other.

    The particles are denoised together, and each step adds the repulsion between them to their
    score (Pondaven 2023; see `Repulsion` for the equation). With `repulsion=None` the images are
    those of diffusers' StableDiffusionPipeline for the same noise.

    Args:
        prompt: What to draw. With several prompts, each gets `num_particles`, and particles repel
            only particles of the same prompt.
        num_particles: N >= 1, for each prompt. A single particle has nothing to repel from, unless
            there is a bank.
        model: None for the shipped model, or "turbo" for the shipped model of four steps.
            Otherwise Stable Diffusion 1, 2 or XL: a local diffusers folder, a single-file
            checkpoint, a hub id "owner/name", a loaded StableDiffusionPipeline, which is used as it
            is (adapters, tokens, autoencoder and noise schedule), or what `load_model` returned. An
            image pipeline with a transformer (Stable Diffusion 3, Flux, Qwen-Image, ...) keeps its
            own loop and scheduler, as `repel` leaves them. Then steps, guidance scale and size are
            by default the pipeline's, there are no diagnostics, and `corrections`, `compile`,
            `group` and the like are refused.
        repulsion: A `Repulsion`, the name of an embedding, another method (`fastrepulse.methods`),
            or None for independent samples.
        num_inference_steps: T >= 1, below the number of timesteps of the model's training; by
            default 25, and 4 for "turbo".
        guidance_scale: Classifier-free guidance; 1 and below switches it off. By default 5, and 1
            for "turbo".
        negative_prompt: What guidance leads away from: one for all prompts, or one for each. None
            is the empty one.
        height: Height in pixels; by default the model's own.
        width: Width in pixels; by default the model's own.
        scheduler: "euler", "ddim", "dpm++" or "unipc".
        seed: The noise of particle i depends on (seed, i) only; by default the seed is random.
        generator: Draws the seed if none is given.
        latents: Initial unit noise [prompts * N, C, H, W] instead of the seed's.
        corrections: Corrector steps before the step to the next noise level.
        long_prompts: How to treat prompts with more tokens than the text encoder takes: "cut" warns
            about the lost words; "chunks" encodes the prompt in pieces, as other front ends do.
        micro_batch_size: Number of particles that go through the model at once, by default chosen
            by free memory; the images depend on it by rounding only.
        memory: Limit on the memory of weights, latents and model passes on the model's device, in
            bytes or as "6GB"; by default a quarter of the free memory serves for the passes.
        compile: Whether to use `torch.compile`, which takes a minute at first; "auto" compiles on a
            GPU if the run is long enough to repay it.
        attention: "auto" leaves the choice to diffusers, "sdpa" is PyTorch's memory-efficient
            attention, "math" is plain PyTorch, and "xformers" needs that package and a GPU.
        group: A `torch.distributed` process group whose ranks all call this function with the same
            arguments. Each rank denoises a part of every prompt's particles, and all particles
            repel each other. All images go to `out`; the returned latents are this rank's.
        device: By default a CUDA GPU if there is one, else the CPU.
        dtype: Dtype of the weights; by default float16 on a GPU and float32 on the CPU.
        out: Folder to which the images are written as they are decoded, with the grid and
            `sample.json`, instead of being kept in memory. If the run is stopped, `resume(out)`
            continues it.
        checkpoint_every: Seconds between checkpoints in `out`; 0 for one after every step, None for
            no checkpoints.
        callback_on_step_end: Called after every step with a `StepEnd`: the progress of the run and
            the clean prediction. An exception in it stops the run.
        progress: Whether to show a progress bar.

    Returns:
        The images, the latents, measurements of every step, and the settings.

    Raises:
        ValueError: If an argument is out of range; names it and what is accepted.
        TypeError: If an argument has a wrong type.
        FileNotFoundError: If the model does not exist.
        OSError: If `out` cannot be written, has too little space or holds the images of another
            run; raised before the first step.
        FloatingPointError: If a value is not finite; names the step and the particle.
        RuntimeError: If another rank of the group has stopped; names it and the reason.

    After the last step a checkpoint is kept until all images are decoded, with or without `out`.
    """
    if keeps_its_loop(model):
        return sample_in_own_loop(dict(locals()), DEFAULTS)
    ranks = Ranks(group)
    with ranks.failing_together():
        drawing = Drawing(
            prompt,
            num_particles,
            model,
            repulsion,
            num_inference_steps,  # type: ignore[arg-type]  # None: by model
            guidance_scale,  # type: ignore[arg-type]
            negative_prompt,
            height,
            width,
            scheduler,
            seed,
            generator,
            latents,
            corrections,
            long_prompts,
        )
        computing = Computing(micro_batch_size, memory, compile, attention, group, device, dtype)
        output = Output(out, checkpoint_every, callback_on_step_end, progress)
        output.check_new()
        if ranks.world_size > 1:
            drawing, output = _agreed(ranks, drawing, output)
        loaded = load_model(model, device, dtype)
        if model is None or isinstance(model, (str, Path)):
            _last_loaded[:] = [loaded]
        output.check_room(drawing, loaded)
        partition = ranks.partition(len(drawing.prompts), num_particles)
        noise = drawing.initial_noise(loaded, partition.rows)
        settings = drawing.settings(loaded)
        ranks.check_same(settings)
        loop = new_loop(drawing, computing, loaded, noise, partition)
        if drawing.active_method is not None:
            settings["repulsion_used"] = plain(loop.method.settings())
        about = about_run(computing, loaded, settings, loop)
        checkpoints = Checkpoints(output.folder, checkpoint_every, about)
        return run(drawing, computing, output, loaded, loop, checkpoints, settings)


DEFAULTS = {name: each.default for name, each in inspect.signature(sample).parameters.items()}


def _agreed(ranks: Ranks, drawing: Drawing, output: Output) -> tuple[Drawing, Output]:
    """Returns the arguments for several ranks: one seed, and one progress bar.

    Raises:
        ValueError: If several ranks cannot share such a run.
    """
    if output.folder is None:
        raise ValueError("out must be a folder that all ranks reach, got None")
    if drawing.num_particles < ranks.world_size:
        raise ValueError(
            f"num_particles must be at least one for each of {ranks.world_size} ranks, "
            f"got {drawing.num_particles}"
        )
    if drawing.method is not None and not drawing.method.joint:
        raise ValueError(
            "repulsion must be a method that needs no latents of other ranks, "
            f"got {type(drawing.method).__name__}"
        )
    seed = ranks.broadcast(drawing.noise_seed)
    progress = output.progress and ranks.rank == 0
    return replace(drawing, seed=seed), replace(output, progress=progress)
