"""How long a push is: what it is made of, scaled, and never further than the noise that is left."""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from fastrepulse.methods.base import Particles

MAX_MOVE = 0.4
"""How far one step's push may move a particle, in units of the noise that is left after it."""


def away_from_mean(particles: Particles) -> Callable[[slice], Tensor]:
    """Returns z_i - mean z over the particles of i's prompt, as a function of a slice."""

    def z(part: slice) -> Tensor:
        return particles.noisy(part).to(particles.device).float()

    sums = [
        torch.stack([z(part).sum(dim=0) for part in particles.micro_batches(own)]).sum(dim=0)
        for own in particles.prompts()
    ]
    # [prompts, C, H, W]
    means = particles.share.total(torch.stack(sums)) / particles.num_particles

    def away(part: slice) -> Tensor:
        return z(part) - means[torch.tensor(particles.share.rows[part]) // particles.num_particles]

    return away


def bounded(
    pushes: Sequence[tuple[float, Callable[[slice], Tensor]]], particles: Particles
) -> Callable[[slice], Tensor]:
    """Returns what is added to the score of a slice: sum of length * direction / sigma, or less.

    An Euler step moves z by sigma (sigma - next_sigma) times what is added to the score; the root
    mean square of that is at most MAX_MOVE * next_sigma.

    Args:
        pushes: A length and a direction each, which need not be of unit length.
        particles: At this step.
    """
    sigma, following = particles.sigma, particles.next_sigma
    factor = 1 / sigma
    if following < sigma:
        total = sum(abs(length) for length, _ in pushes)
        factor = min(factor, MAX_MOVE * following / (sigma * (sigma - following) * total))

    def change(part: slice) -> Tensor:
        return reduce(
            torch.add, (scaled(direction(part), factor * length) for length, direction in pushes)
        )

    return change


def scaled(latents: Tensor, length: float) -> Tensor:
    """Returns latents [n, C, H, W] with a root mean square of `length` each; zeros stay."""
    rows = latents.flatten(1)
    # In float64: the square of a small number would underflow
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    factors = length * math.sqrt(rows.shape[1]) / norms.clamp_min(1e-30)
    return (rows * factors.float()).view_as(latents)
