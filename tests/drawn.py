"""What tests draw: rows of embeddings, and particles at one step."""

import torch

from fastrepulse.methods.base import Particles


def draw_rows(n, d, dtype=torch.float32, seed=0):
    """Rows [n, d] of the same numbers in every dtype, as far as it holds them."""
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
):
    """Particles at one step; latents that are noisy and denoised at once, unless told apart."""
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
    )
