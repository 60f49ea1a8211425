"""`sample()`: a prompt in, N pictures that differ out."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastrepulse import models
from fastrepulse.checks import check_number, check_window
from fastrepulse.layers import accelerated
from fastrepulse.layers.attention import ATTENTIONS
from fastrepulse.methods.base import Method
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.noise import initial_noise
from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.denoiser import (
    Denoiser,
    choose_micro_batch_size,
    choose_storage,
    repays_compiling,
)
from fastrepulse.sampling.loop import DenoiseLoop
from fastrepulse.sampling.results import (
    SampleResult,
    SavedImages,
    check_space,
    check_unused,
    check_writable,
    plain_settings,
    save_picture,
    to_pil,
)

log = logging.getLogger("fastrepulse")

DEFAULT_REPULSION = Repulsion()


@torch.no_grad()
def sample(
    prompt: str | Sequence[str],
    num_particles: int = 16,
    *,
    model: str | Path | models.Model | None = None,
    repulsion: Method | str | None = DEFAULT_REPULSION,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    negative_prompt: str = "",
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
    compile: bool | Literal["auto"] = "auto",
    attention: Literal["auto", "sdpa", "xformers", "math"] = "auto",
    out: str | Path | None = None,
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
        model: None for the shipped model, a local diffusers folder, a hub id "owner/name" of a
            Stable Diffusion 1 or 2 type model, or what `load_model` returned.
        repulsion: A `Repulsion`, the name of an embedding, another method (`fastrepulse.methods`),
            or None for independent samples.
        num_inference_steps: T >= 1, below the number of timesteps that the model was trained with.
        guidance_scale: Classifier-free guidance; 1 and below switches it off.
        negative_prompt: What guidance leads away from.
        height: In pixels; by default the model's own.
        width: In pixels; by default the model's own.
        scheduler: "euler", "ddim" or "dpm++".
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
        compile: Whether to run the model through `torch.compile`, which takes a minute the first
            time; "auto" does where the run is long enough to repay it.
        attention: "sdpa" is PyTorch's own memory-efficient one, "math" spells it out, "xformers"
            needs that package and a GPU; "auto" is the native library's in float32 on a CPU
            with AVX-512, and elsewhere what diffusers chooses.
        out: A folder that the pictures are written to as they are decoded, with the grid and
            `sample.json`, in place of being held in memory.
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
    """
    if not isinstance(prompt, (str, Sequence)):
        raise TypeError(f"prompt must be a string or a list of strings, got {prompt!r}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    _check_texts(prompts, negative_prompt)
    _check_numbers(num_particles, num_inference_steps, guidance_scale, micro_batch_size)
    check_window("guidance_window", guidance_window)
    if not (latents is None or isinstance(latents, Tensor)):
        raise TypeError(f"latents must be a tensor or None, got {latents!r}")
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}")
    if not isinstance(corrections, Sequence) or not all(
        isinstance(correction, Correction) for correction in corrections
    ):
        raise TypeError(f"corrections must be a sequence of Correction, got {corrections!r}")
    if shared_until is not None and not shared_until > 0:
        raise ValueError(f"shared_until must be None or a noise level above 0, got {shared_until}")
    if compile not in ("auto", True, False):
        raise ValueError(f"compile must be 'auto', True or False, got {compile!r}")
    if attention not in ATTENTIONS:
        accepted = ", ".join(ATTENTIONS)
        raise ValueError(f"attention must be one of {accepted}, got {attention!r}")
    if scheduler not in models.SCHEDULERS:
        accepted = ", ".join(models.SCHEDULERS)
        raise ValueError(f"scheduler must be one of {accepted}, got {scheduler!r}")
    if isinstance(repulsion, str):
        repulsion = Repulsion(embedding=repulsion)
    elif not (repulsion is None or isinstance(repulsion, Method)):
        raise TypeError(f"repulsion must be a Repulsion, a name or None, got {repulsion!r}")
    seed = _choose_seed(seed, generator)
    folder = None if out is None else Path(out).expanduser()
    if folder is not None:
        check_writable(folder)
        check_unused(folder)
    sd = models.load_model(model, device, dtype)
    latent_shape = sd.latent_shape(height, width)
    count = len(prompts) * num_particles
    if folder is not None:
        check_space(folder, count * 3 * math.prod(latent_shape[1:]) * sd.vae_scale_factor**2)
    latents_given = latents is not None
    if latents is None:
        latents = initial_noise(seed, num_particles, latent_shape).repeat(len(prompts), 1, 1, 1)
    elif tuple(latents.shape) != (count, *latent_shape):
        raise ValueError(f"latents must be {[count, *latent_shape]}, got {list(latents.shape)}")
    if micro_batch_size is None:
        micro_batch_size = choose_micro_batch_size(sd.unet, latent_shape)
    micro_batch_size = min(micro_batch_size, count)
    if compile == "auto":
        compile = repays_compiling(count, num_inference_steps, micro_batch_size)
    settings = {
        "prompts": prompts,
        "num_particles": num_particles,
        "model": sd.name,
        "repulsion": repulsion.settings() if repulsion else None,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": float(guidance_scale),
        "guidance_window": [None if math.isinf(level) else level for level in guidance_window],
        "corrections": [correction.settings() for correction in corrections],
        "shared_until": shared_until,
        "negative_prompt": negative_prompt,
        "height": latent_shape[1] * sd.vae_scale_factor,
        "width": latent_shape[2] * sd.vae_scale_factor,
        "scheduler": scheduler,
        "seed": seed,
        "latents_given": latents_given,
        "dtype": str(sd.dtype).removeprefix("torch."),
        "device": str(sd.device),
    }
    settings = plain_settings(settings)

    stepper = sd.scheduler(scheduler, num_inference_steps)
    text = sd.encode_prompts(prompts)
    negative = sd.encode_prompts([negative_prompt]) if guidance_scale > 1 else None
    denoise = Denoiser(sd.unet, text, negative, guidance_scale, micro_batch_size, compile)
    storage = choose_storage(sd.device, count, latent_shape)
    x = latents.to(storage, sd.dtype) * stepper.init_noise_sigma
    acts = repulsion is not None and (num_particles > 1 or repulsion.acts_on_one)
    how: dict[str, Any] = {
        "seed": seed,
        "guidance_window": guidance_window,
        "micro_batch_size": micro_batch_size,
        "corrections": corrections,
    }
    with accelerated(sd.unet, attention):
        start = 0
        if shared_until is not None:
            # As they come: a compiled graph would have them padded to a micro-batch
            plain = Denoiser(sd.unet, text, negative, guidance_scale, micro_batch_size, False)
            ones = DenoiseLoop(
                x[::num_particles].clone(), plain, stepper, None, num_particles=1, **how
            )
            x, start = branch(ones, shared_until, latents.to(x))
        loop = DenoiseLoop(
            x,
            denoise,
            stepper,
            repulsion if acts else None,
            num_particles=num_particles,
            start=start,
            **how,
        )
        diagnostics = loop.run(progress=progress)
    result = SampleResult([], x, diagnostics, settings)
    return decode(sd, result, folder, denoise.micro_batch_size, progress)


def branch(ones: DenoiseLoop, sigma: float, noise: Tensor) -> tuple[Tensor, int]:
    """Takes one particle of each prompt down to a noise level and gives its picture to all.

    Args:
        ones: The loop of the single particles.
        sigma: The noise level.
        noise: Of unit variance, for all particles [prompts * N, C, H, W].

    Returns:
        The noisy latents of all particles, as the scheduler holds them, and the step to go on with.

    Raises:
        ValueError: If the noise level is below the last one.
    """
    schedule = ones.schedule
    steps = range(len(ones.scheduler.timesteps))
    start = next((step for step in steps if schedule.sigmas[step] <= sigma), None)
    if start is None:
        lowest = schedule.sigmas[steps[-1]]
        raise ValueError(f"shared_until must be at least {lowest:.3g} here, got {sigma}")
    ones.run(stop=start)
    ones.predict(start)
    clean = ones.denoised.repeat_interleave(len(noise) // len(ones.x), dim=0)
    return schedule.held(clean + schedule.sigmas[start] * noise, start), start


def decode(
    sd: models.Model, result: SampleResult, folder: Path | None, batch_size: int, progress: bool
) -> SampleResult:
    """Returns the result with its pictures, which go straight to the folder if there is one."""
    images: list[Image.Image] = []
    paths: list[Path] = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    count = len(result.latents)
    try:
        with (
            accelerated(sd.vae),
            tqdm(total=count, desc="decode", unit="img", disable=not progress) as bar,
        ):
            for chunk in result.latents.split(batch_size):
                for image in to_pil(sd.decode(chunk.to(sd.device))):
                    if folder is None:
                        images.append(image)
                    else:
                        paths.append(save_picture(image, folder, len(paths), result.settings))
                    bar.update()
    except KeyboardInterrupt:
        if folder is not None:
            log.warning("stopped: %d of %d pictures are in %s", len(paths), count, folder)
        raise
    if folder is None:
        return replace(result, images=images)
    saved = replace(result, images=SavedImages(paths))
    saved.save_summary(folder)
    return saved


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
    num_particles: int,
    num_inference_steps: int,
    guidance_scale: float,
    micro_batch_size: int | None,
) -> None:
    for name, count in (
        ("num_particles", num_particles),
        ("num_inference_steps", num_inference_steps),
        ("micro_batch_size", 1 if micro_batch_size is None else micro_batch_size),
    ):
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name} must be an int, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    check_number("guidance_scale", guidance_scale)
