"""`sample()`: a prompt in, N pictures that differ out."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastrepulse import models
from fastrepulse.denoiser import Denoiser
from fastrepulse.finite import check_finite
from fastrepulse.repulsion import Push, Repeller, Repulsion
from fastrepulse.results import SampleResult, StepDiagnostics, to_pil
from fastrepulse.schedule import NoiseSchedule

DEFAULT_REPULSION = Repulsion()


@torch.no_grad()
def sample(
    prompt: str | Sequence[str],
    num_particles: int = 16,
    *,
    model: str | Path | models.Model | None = None,
    repulsion: Repulsion | str | None = DEFAULT_REPULSION,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    scheduler: str = "euler",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    latents: Tensor | None = None,
    micro_batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> SampleResult:
    """Draws N pictures of a prompt together, so that they differ from each other.

    The particles are denoised side by side, and every step adds the repulsion between them to
    their score: s_i <- s_i + strength * R_i (Pondaven 2023; see `Repulsion`). With `repulsion=None`
    the result is what diffusers' StableDiffusionPipeline makes of the same noise.

    Args:
        prompt: What to draw. Of several prompts each gets `num_particles`, and particles repel
            only within their prompt.
        num_particles: N >= 1, for each prompt. One particle has nothing to repel from.
        model: None for the shipped model, a local diffusers folder, a hub id "owner/name" of a
            Stable Diffusion 1 or 2 type model, or what `load_model` returned.
        repulsion: A `Repulsion`, the name of an embedding, or None for independent samples.
        num_inference_steps: T >= 1.
        guidance_scale: Classifier-free guidance; 1 and below switches it off.
        negative_prompt: What guidance leads away from.
        height: In pixels; by default the model's own.
        width: In pixels; by default the model's own.
        scheduler: "euler", "ddim" or "dpm++".
        seed: The noise of particle i depends on (seed, i) alone; drawn at random by default.
        generator: Draws the seed, where none is given.
        latents: Initial noise of unit variance [prompts * N, C, H, W], in place of the seed's.
        micro_batch_size: How many particles go through the model at once; the result does not
            depend on it beyond rounding.
        device: By default a CUDA GPU if there is one, else the CPU.
        dtype: Of the weights; by default float16 on a GPU and float32 on the CPU.
        progress: Whether to show a progress bar.

    Returns:
        The pictures, the latents, what happened at every step, and the settings.

    Raises:
        ValueError: If an argument is out of range, named with what is accepted.
        TypeError: If an argument has a wrong type.
        FileNotFoundError: If there is no such model.
        FloatingPointError: If a value stops being finite; names the step and the particle.
    """
    if not isinstance(prompt, (str, Sequence)):
        raise TypeError(f"prompt must be a string or a list of strings, got {prompt!r}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    _check_texts(prompts, negative_prompt)
    _check_numbers(num_particles, num_inference_steps, guidance_scale, micro_batch_size)
    if scheduler not in models.SCHEDULERS:
        accepted = ", ".join(models.SCHEDULERS)
        raise ValueError(f"scheduler must be one of {accepted}, got {scheduler!r}")
    if isinstance(repulsion, str):
        repulsion = Repulsion(embedding=repulsion)
    elif not (repulsion is None or isinstance(repulsion, Repulsion)):
        raise TypeError(f"repulsion must be a Repulsion, a name or None, got {repulsion!r}")
    seed = _choose_seed(seed, generator)

    sd = models.load_model(model, device, dtype)
    shape = (len(prompts) * num_particles, *sd.latent_shape(height, width))
    latents_given = latents is not None
    if latents is None:
        latents = torch.cat([initial_noise(seed, num_particles, shape[1:])] * len(prompts))
    elif tuple(latents.shape) != shape:
        raise ValueError(f"latents must be {list(shape)}, got {list(latents.shape)}")

    stepper = sd.scheduler(scheduler, num_inference_steps)
    schedule = NoiseSchedule.of(stepper)
    condition = sd.encode_prompts(prompts).repeat_interleave(num_particles, dim=0)
    unconditional = sd.encode_prompts([negative_prompt]) if guidance_scale > 1 else None
    denoise = Denoiser(sd.unet, condition, unconditional, guidance_scale, micro_batch_size)
    repeller = Repeller(repulsion, seed) if repulsion and num_particles > 1 else None
    groups = [slice(p * num_particles, (p + 1) * num_particles) for p in range(len(prompts))]

    x = latents.to(sd.device, sd.dtype) * stepper.init_noise_sigma
    diagnostics: list[StepDiagnostics] = []
    steps = tqdm(stepper.timesteps, desc="denoise", unit="step", disable=not progress)
    for step, timestep in enumerate(steps):
        sigma = schedule.sigmas[step]
        output = denoise(stepper.scale_model_input(x, timestep), timestep)
        check_finite(output, "the model's output", step)
        z = schedule.noisy(x, step)
        denoised = schedule.denoised(z, output, step)
        pushes: list[Push] = []
        if repeller is not None:
            pushes = [repeller.push(z[group], denoised[group], sigma, step) for group in groups]
            if repeller.repulsion.acts_at(sigma):
                change = repeller.repulsion.strength * torch.cat([push.change for push in pushes])
                check_finite(change, "the repulsion", step)
                output = schedule.add_to_score(output, change, step)
        score = schedule.score(z, denoised, step)
        diagnostics.append(StepDiagnostics.of(sigma, score, pushes))
        x = stepper.step(output, timestep, x).prev_sample

    pictures = [
        to_pil(sd.decode(chunk))
        for chunk in tqdm(x.split(micro_batch_size), desc="decode", disable=not progress)
    ]
    settings = {
        "prompts": prompts,
        "num_particles": num_particles,
        "model": sd.name,
        "repulsion": repulsion.settings() if repulsion else None,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": float(guidance_scale),
        "negative_prompt": negative_prompt,
        "height": shape[2] * sd.vae_scale_factor,
        "width": shape[3] * sd.vae_scale_factor,
        "scheduler": scheduler,
        "seed": seed,
        "latents_given": latents_given,
        "dtype": str(sd.dtype).removeprefix("torch."),
        "device": str(sd.device),
    }
    images = [image for chunk in pictures for image in chunk]
    return SampleResult(images, x, diagnostics, settings)


def initial_noise(seed: int, num_particles: int, shape: Sequence[int]) -> Tensor:
    """Draws unit noise [N, *shape]; that of particle i depends on (seed, i) alone."""
    noise = [
        np.random.Generator(np.random.Philox(key=[seed, i])).standard_normal(shape, np.float32)
        for i in range(num_particles)
    ]
    return torch.from_numpy(np.stack(noise))


def _choose_seed(seed: int | None, generator: torch.Generator | None) -> int:
    if seed is None:
        device = generator.device if generator is not None else None
        return int(torch.randint(2**31, (), generator=generator, device=device))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int or None, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
    return seed


def _check_texts(prompts: list[str], negative_prompt: str) -> None:
    if not prompts:
        raise ValueError("prompt must be a string or a list of at least one, got an empty list")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a string or a list of strings, got {prompt!r}")
    if not isinstance(negative_prompt, str):
        raise TypeError(f"negative_prompt must be a string, got {negative_prompt!r}")


def _check_numbers(
    num_particles: int, num_inference_steps: int, guidance_scale: float, micro_batch_size: int
) -> None:
    for name, count in (
        ("num_particles", num_particles),
        ("num_inference_steps", num_inference_steps),
        ("micro_batch_size", micro_batch_size),
    ):
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name} must be an int, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number, got {guidance_scale}")
