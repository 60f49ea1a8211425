"""How long a push is: what it is made of, scaled, and never further than the noise that is left."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

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
        moves = [factor * length * unit(direction(part)) for length, direction in pushes]
        return torch.stack(moves).sum(dim=0)

    return change


def unit(latents: Tensor) -> Tensor:
    """Returns latents [n, C, H, W] with a root mean square of 1 each; zeros stay."""
    # By the largest number first: the square of a small one would underflow
    rows = normalize(latents.flatten(1), p=math.inf, eps=1e-30)
    rms = rows.square().mean(dim=1, keepdim=True).sqrt()
    return (rows / rms.clamp_min(1e-6)).view_as(latents)
