"""The length of a push: given by the strength, and bounded by the noise that is left."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastrepulse.methods.base import Particles
from fastrepulse.torch_settings import is_limited, precise_dtype

MAX_MOVE = 0.4
"""Longest push of one step, in units of the noise level that the step ends at."""


def with_step_length(
    directions: Iterator[Tensor], strength: float, particles: Particles
) -> Iterator[Tensor]:
    """Yields strength * direction / sigma for each direction, shorter where the bound demands it.

    An Euler step moves z by sigma (sigma - next_sigma) times the change of the score. The root mean
    square of that move is at most MAX_MOVE * next_sigma.

    Args:
        directions: Directions [n, C, H, W] of any length, one tensor per micro-batch.
        strength: Length of the push relative to the predicted noise; below 0 reverses it.
        particles: The particles at this step.
    """
    sigma, next_sigma = particles.sigma, particles.next_sigma
    factor = 1 / sigma
    if next_sigma < sigma:
        bound = MAX_MOVE * next_sigma / (sigma * (sigma - next_sigma) * abs(strength))
        factor = min(factor, bound)
    return (with_rms(direction, factor * strength) for direction in directions)


def with_rms(latents: Tensor, rms: float) -> Tensor:
    """Scales each of the latents [n, C, H, W] to a root mean square; zeros stay zero."""
    rows = latents.flatten(1)
    # In float64 or scaled, since the square of a small float32 underflows
    if is_limited(rows.device):
        rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    dtype = precise_dtype(rows.device)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=dtype)
    factors = rms * math.sqrt(rows.shape[1]) / norms.clamp_min(1e-30)
    return (rows * factors.float()).view_as(latents)
