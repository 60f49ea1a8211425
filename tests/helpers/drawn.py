"""Random inputs for tests: embeddings, particles at one step, and a few small images."""

import torch

import fastrepulse
from fastrepulse.methods.base import Particles


def draw_rows(n, d, dtype=torch.float32, seed=0):
    """Returns rows [n, d] of the same numbers in every dtype, up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def particles_of(
    noisy,
    denoised=None,
    *,
    sigma=1.0,
    next_sigma=None,
    step=0,
    last=False,
    num_particles=None,
    seed=0,
    device="cpu",
):
    """Returns particles at one step; the noisy latents are the denoised ones by default."""
    return Particles(
        noisy if denoised is None else denoised,
        lambda part: noisy[part],
        sigma,
        0.9 * sigma if next_sigma is None else next_sigma,
        step,
        last,
        num_particles or len(noisy),
        seed,
        micro_batch_size=3,
        device=device,
    )


def draw(**arguments):
    """Samples six images of the shipped model at a quarter of its size, in six steps."""
    settings = {"num_particles": 6, "num_inference_steps": 6, "seed": 0, "progress": False}
    settings |= {"prompt": "a potted plant", "height": 32, "width": 32}
    return fastrepulse.sample(**{**settings, **arguments})
