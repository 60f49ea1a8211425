"""The loop: all particles go down the noise levels together, and repel each other on the way."""

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastrepulse.denoiser import Denoiser
from fastrepulse.finite import check_finite
from fastrepulse.particles import Method, Particles, Push
from fastrepulse.results import StepDiagnostics
from fastrepulse.schedule import NoiseSchedule


def denoise_together(
    x: Tensor,
    denoise: Denoiser,
    scheduler: Any,
    method: Method | None,
    *,
    num_particles: int,
    seed: int,
    guidance_window: tuple[float, float],
    micro_batch_size: int,
    progress: bool,
) -> list[StepDiagnostics]:
    """Denoises particles in place: s_i <- s_i + what the method adds at every noise level.

    Everything but the embeddings goes micro-batch by micro-batch, so that memory beyond one of them
    is that of three sets of latents: what the scheduler holds, what the model says, and the clean
    latents that it predicts.

    Args:
        x: Noisy latents [prompts * N, C, H, W], scaled as the scheduler holds them. They may lie in
            host memory while the model is on a GPU.
        denoise: The model with its prompts.
        scheduler: A diffusers scheduler with its timesteps set.
        method: The repulsion, or another; None for independent particles.
        num_particles: N, for each prompt.
        seed: From which the method draws what is random in it.
        guidance_window: Noise levels (from, to) inside which there is guidance.
        micro_batch_size: How many particles go through the model at once.
        progress: Whether to show a progress bar.

    Returns:
        What happened at each step.

    Raises:
        FloatingPointError: If a value stops being finite; names the step and the particle.
    """
    schedule = NoiseSchedule.of(scheduler)
    starts = range(0, len(x), micro_batch_size)
    parts = [slice(start, min(start + micro_batch_size, len(x))) for start in starts]
    # Some schedulers remember past outputs, so each micro-batch has its own
    schedulers = [copy.deepcopy(scheduler) for _ in parts]
    prompts = torch.arange(len(x), device=denoise.device) // num_particles
    output, denoised = torch.empty_like(x), torch.empty_like(x)
    diagnostics = []
    steps = len(scheduler.timesteps)
    # Counted in particles and steps, shown in whole images
    total, scale = steps * len(x), 1 / steps
    look = (
        "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]"
    )
    with tqdm(
        desc="denoise",
        total=total,
        unit_scale=scale,
        unit="img",
        bar_format=look,
        disable=not progress,
    ) as bar:
        for step, timestep in enumerate(scheduler.timesteps):
            sigma = schedule.sigmas[step]
            guided = guidance_window[0] >= sigma >= guidance_window[1]
            time = float(timestep) / scheduler.config.num_train_timesteps
            square_score = 0.0
            for part, own in zip(parts, schedulers, strict=True):
                held = x[part].to(denoise.device)
                text = denoise.text[prompts[part]]
                if method is not None:
                    text = method.perturb_text(text, part.start, time, step, seed)
                said = denoise(own.scale_model_input(held, timestep), timestep, text, guided)
                check_finite(said, "the model's output", step, part.start)
                z = schedule.noisy(held, step)
                clean = schedule.denoised(z, said, step)
                square_score += schedule.score(z, clean, step).float().square().sum().item()
                output[part], denoised[part] = said, clean
                bar.update(part.stop - part.start)

            push = Push()
            if method is not None:
                particles = Particles(
                    denoised=denoised,
                    noisy=partial(schedule.noisy, x, step),
                    sigma=sigma,
                    next_sigma=schedule.sigmas[step + 1],
                    step=step,
                    last=step == steps - 1,
                    num_particles=num_particles,
                    seed=seed,
                    micro_batch_size=micro_batch_size,
                    device=denoise.device,
                )
                push = method.push(particles)
            diagnostics.append(StepDiagnostics.of(sigma, math.sqrt(square_score / len(x)), push))

            for part, own in zip(parts, schedulers, strict=True):
                held, said = x[part].to(denoise.device), output[part].to(denoise.device)
                if push.change is not None:
                    said = schedule.add_to_score(said, push.change(part), step)
                x[part] = own.step(said, timestep, held).prev_sample
    return diagnostics
