"""The whole method on one page, in plain PyTorch, to be read.

N samples ("particles") of one prompt are denoised together, and at every noise level each is pushed
away from the others in a small embedding space. `fastrepulse.sample` computes the same with fused
kernels, in micro-batches, for any scheduler and prediction type.

A. Pondaven, "Repulsion in Stable Diffusion 2", MSc thesis, Imperial College London, 2023, after
Stein variational gradient descent (Liu & Wang 2016, arXiv:1608.04471).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

MAX_MOVE = 0.4
"""How far one step may push a particle, in units of the noise that is left after it."""


def sq_distances(phi: Tensor) -> Tensor:
    """||phi_i - phi_j||^2 of embeddings [N, d], as [N, N]."""
    return (phi[:, None] - phi[None, :]).square().sum(dim=-1)


def median_bandwidth(phi: Tensor) -> Tensor:
    """h = median of ||phi_i - phi_j||^2 over the pairs i < j, over log N."""
    i, j = torch.triu_indices(len(phi), len(phi), offset=1)
    return sq_distances(phi)[i, j].median() / math.log(len(phi))


def repulsive_force(phi: Tensor) -> Tensor:
    """F_i = (2 / h) sum_j k_ij (phi_i - phi_j) with k_ij = exp(-||phi_i - phi_j||^2 / h).

    It is minus the gradient of sum_j k_ij: it leads away from the particles that are alike.
    """
    h = median_bandwidth(phi)
    k = torch.exp(-sq_distances(phi) / h)
    return (2 / h) * (k.sum(dim=1, keepdim=True) * phi - k @ phi)


def pull_back(embed: Callable[[Tensor], Tensor], x: Tensor, force: Tensor) -> Tensor:
    """R_i = J(x_i)^T F_i: what to change in x so that the embedding moves along the force."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(embed(x), x, force)[0]


def unit_length(x: Tensor) -> Tensor:
    """Each row divided by its root mean square: as long as unit noise; zeros stay."""
    rms = x.flatten(1).square().mean(dim=1).sqrt().clamp_min(1e-30)
    return x / rms.view(-1, *[1] * (x.ndim - 1))


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, float], Tensor],
    z: Tensor,
    sigmas: Sequence[float],
    embed: Callable[[Tensor], Tensor],
    fresh: Tensor,
    strength: float = 0.4,
    window: tuple[float, float] = (9.0, 4.0),
    restart: tuple[float, float] = (3.0, 1.0),
) -> Tensor:
    """Takes particles from noise to pictures by Euler's method, while they repel each other.

    Args:
        denoise: Predicts the clean x0 of noisy particles z = x0 + sigma * noise at a noise level;
            guidance is in here, and pauses for sigma from 9 to 0.3.
        z: Particles [N, ...] at the first noise level, N >= 2.
        sigmas: Noise levels, decreasing to 0.
        embed: phi, differentiable, from [N, ...] to embeddings [N, d].
        fresh: Unit noise [N, ...] for the restart.
        strength: Length of the push over that of the predicted noise.
        window: Noise levels (from, to) inside which particles repel.
        restart: Noise levels (from, to) below the window: at the latter particles go back to the
            former, once, and the model draws anew what the push left of itself.
    """
    high, low = (next(i for i, s in enumerate(sigmas) if s <= level) for level in restart)
    for sigma, next_sigma in pairwise([*sigmas[: low + 1], *sigmas[high:]]):
        if next_sigma >= sigma:
            z = z + math.sqrt(next_sigma**2 - sigma**2) * fresh
            continue
        x0 = denoise(z, sigma)
        noise = (z - x0) / sigma
        if window[0] >= sigma >= window[1]:
            push = pull_back(embed, x0, repulsive_force(embed(x0)))
            length = min(strength, MAX_MOVE * next_sigma / (sigma - next_sigma))
            noise = noise - length * unit_length(push)
        z = z + (next_sigma - sigma) * noise
    return z
