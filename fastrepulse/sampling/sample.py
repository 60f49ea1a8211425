"""`sample()`: a prompt in, N pictures that differ out."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastrepulse.layers import accelerated
from fastrepulse.methods.base import Method
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.models import Model, load_model
from fastrepulse.sampling.branch import branch
from fastrepulse.sampling.checkpoint import Checkpoints
from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.finish import finish
from fastrepulse.sampling.prepare import prepare
from fastrepulse.sampling.ranks import Ranks
from fastrepulse.sampling.request import Request
from fastrepulse.sampling.results import SampleResult, StepEnd
from fastrepulse.torch_settings import undisturbed

DEFAULT_REPULSION = Repulsion()
DEFAULT_STEPS = 25
DEFAULT_GUIDANCE_SCALE = 5.0
DEFAULT_CHECKPOINT_EVERY = 60.0

_last_loaded: list[Model] = []
"""The model that was loaded last: the next call finds it."""


@undisturbed()
def sample(
    prompt: str | Sequence[str],
    num_particles: int = 16,
    *,
    model: Any = None,
    repulsion: Method | str | None = DEFAULT_REPULSION,
    num_inference_steps: int = DEFAULT_STEPS,
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE,
    negative_prompt: str | Sequence[str] = "",
    height: int | None = None,
    width: int | None = None,
    scheduler: str = "euler",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    latents: Tensor | None = None,
    guidance_window: tuple[float, float] = (math.inf, 0.0),
    corrections: Sequence[Correction] = (),
    shared_until: float | None = None,
    micro_batch_size: int | None = None,
    memory: int | str | None = None,
    compile: bool | Literal["auto"] = "auto",
    attention: Literal["auto", "sdpa", "xformers", "math"] = "auto",
    long_prompts: Literal["cut", "chunks"] = "cut",
    out: str | Path | None = None,
    checkpoint_every: float | None = DEFAULT_CHECKPOINT_EVERY,
    callback_on_step_end: Callable[[StepEnd], None] | None = None,
    group: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> SampleResult:
    """Draws N pictures of a prompt together, so that they differ from each other.

    The particles are denoised side by side, and every step adds the repulsion between them to
    their score (Pondaven 2023; see `Repulsion` for the equation). With `repulsion=None` the result
    is what diffusers' StableDiffusionPipeline makes of the same noise.

    Args:
        prompt: What to draw. Of several prompts each gets `num_particles`, and particles repel
            only within their prompt.
        num_particles: N >= 1, for each prompt. One particle has nothing to repel from, unless there
            is a bank.
        model: None for the shipped model; of Stable Diffusion 1, 2 or XL: a local diffusers folder,
            a single-file checkpoint, a hub id "owner/name", a loaded StableDiffusionPipeline, which
            is used as it is (adapters, tokens, its autoencoder and noise schedule), or what
            `load_model` returned.
        repulsion: A `Repulsion`, the name of an embedding, another method (`fastrepulse.methods`),
            or None for independent samples.
        num_inference_steps: T >= 1, below the number of timesteps that the model was trained with.
        guidance_scale: Classifier-free guidance; 1 and below switches it off.
        negative_prompt: What guidance leads away from: one for all prompts, or one for each.
        height: In pixels; by default the model's own.
        width: In pixels; by default the model's own.
        scheduler: "euler", "ddim", "dpm++" or "unipc".
        seed: The noise of particle i depends on (seed, i) alone; drawn at random by default.
        generator: Draws the seed, where none is given.
        latents: Initial noise of unit variance [prompts * N, C, H, W], in place of the seed's.
        guidance_window: Noise levels (from, to) inside which there is guidance; outside, the model
            runs without it, in half the time (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        corrections: Steps to take at each noise level before the one that leaves it.
        shared_until: A noise level down to which all particles of a prompt are one, that of the
            first particle; there its predicted picture is given to all, each with its own noise.
        micro_batch_size: How many particles go through the model at once, by default by the memory
            that is free; the result does not depend on it beyond rounding.
        memory: The most that weights, latents and passes of the model take together on its device,
            in bytes or as "6GB"; by default a quarter of what is free serves for the passes.
        compile: Whether to run the model through `torch.compile`, which takes a minute the first
            time; "auto" does on a GPU if the run is long enough to repay it.
        attention: "sdpa" is PyTorch's own memory-efficient one, "math" spells it out, "xformers"
            needs that package and a GPU; "auto" is what diffusers chooses.
        long_prompts: What becomes of prompts with more tokens than the text encoder takes: "cut"
            warns of what is lost; "chunks" encodes them piece by piece, as other front ends do.
        out: A folder that the pictures are written to as they are decoded, with the grid and
            `sample.json`, in place of being held in memory. A run that is killed before the last of
            them goes on by `resume(out)`.
        checkpoint_every: Seconds from one checkpoint in `out` to the next, at least 0, which means
            after every step; None for no checkpoints.
        callback_on_step_end: Is called after every step with a `StepEnd`: how far the run is and
            the pictures that it is heading for. What it raises stops the run.
        group: A `torch.distributed` process group whose processes all call this with the same
            arguments: each denoises its part of every prompt's particles, and all repel each other
            as in one process. The pictures of all go to `out`; the latents returned are one's own.
        device: By default a CUDA GPU if there is one, else the CPU.
        dtype: Of the weights; by default float16 on a GPU and float32 on the CPU.
        progress: Whether to show a progress bar.

    Returns:
        The pictures, the latents, what happened at every step, and the settings.

    Raises:
        ValueError: If an argument is out of range, named with what is accepted.
        TypeError: If an argument has a wrong type.
        FileNotFoundError: If there is no such model.
        OSError: If `out` cannot be written, has too little space or holds the pictures of another
            run; before the first step.
        FloatingPointError: If a value stops being finite; names the step and the particle.
        RuntimeError: If another process of the group has stopped; names it and says why.

    Whatever stops it, `resume` goes on from the last checkpoint; after the last step there is one
    with or without a folder.
    """
    given = locals()
    ranks = Ranks(group)
    with ranks.voting():
        request = Request(**given).agreed(ranks)
        sd = load_model(request.model, request.device, request.dtype)
        if request.model is None or isinstance(request.model, (str, Path)):
            _last_loaded[:] = [sd]
        share = ranks.share(len(request.prompts), request.num_particles)
        noise = request.initial_noise(sd, share.rows)
        settings = request.settings(sd)
        ranks.check_same(settings)
        loop = prepare(request, sd, noise, share)
        if request.shared_until is not None:
            first = request.initial_noise(sd, range(0, request.count, num_particles))
            with accelerated(sd.unet, request.attention):
                loop = branch(loop, request.shared_until, first, noise)
        checkpoints = Checkpoints.of(request, sd, settings, loop)
        return finish(request, sd, loop, checkpoints, settings, request.folder)
