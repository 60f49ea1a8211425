"""The default algorithm of `fastrepulse.sample` on one page, in plain PyTorch.

N samples ("particles") of one prompt are denoised together. At high noise levels each particle is
pushed away from the others in a small embedding space, while guidance pauses. One restart removes
the artefacts of the push. One approximation: phi is evaluated at the clean prediction x0, and the
denoiser's Jacobian dx0/dz is taken to be a multiple of the identity. The levels are for 16x16
latents and 25 guided steps; `methods/defaults.py` has the rule for others.

A. Pondaven, "Repulsion in Stable Diffusion 2", MSc thesis, Imperial College London, 2023, after
Stein variational gradient descent (Liu & Wang 2016, arXiv:1608.04471). Restart: arXiv:2306.14878.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MAX_MOVE = 0.4  # longest push of a step, in units of the noise level that the step ends at


def repulsive_force(phi: Tensor) -> Tensor:
    """F_i = -grad_i sum_j k_ij = (2/h) sum_j k_ij (phi_i - phi_j) of embeddings [N, d].

    k_ij = exp(-||phi_i - phi_j||^2 / h), h = median of ||phi_i - phi_j||^2 over pairs / log N.
    """
    sq_distances = (phi[:, None] - phi[None, :]).square().sum(dim=-1)  # [N, N]
    i, j = torch.triu_indices(len(phi), len(phi), offset=1)
    h = sq_distances[i, j].median() / math.log(len(phi))
    k = torch.exp(-sq_distances / h)
    return (2 / h) * (k.sum(dim=1, keepdim=True) * phi - k @ phi)


def pull_back(embed: Callable[[Tensor], Tensor], x0: Tensor, force: Tensor) -> Tensor:
    """R_i = J(x0_i)^T F_i: the change of the latents that moves the embedding along the force."""
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_()
        return torch.autograd.grad(embed(x0), x0, force)[0]


def rms(x: Tensor) -> Tensor:
    """Root mean square of each row, at least 1e-30, [N, 1, ...]."""
    return x.square().mean(dim=tuple(range(1, x.ndim)), keepdim=True).sqrt().clamp_min(1e-30)


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, float, bool], Tensor],
    z: Tensor,
    sigmas: Sequence[float],
    embed: Callable[[Tensor], Tensor],
    restart_noise: Tensor,
    strength: float = 0.4,
    window: tuple[float, float] = (9.0, 4.0),
    pause: tuple[float, float] | None = (9.0, 0.3),
    restart: tuple[float, float] | None = (3.0, 1.0),
) -> Tensor:
    """Denoises particles by Euler's method while they repel each other.

    Args:
        denoise: Predicts the clean x0 of z = x0 + sigma * noise, from (z, sigma, guided).
        z: Particles [N, ...] at the first noise level, N >= 2.
        sigmas: Noise levels, decreasing to 0.
        embed: phi, differentiable, from [N, ...] to embeddings [N, d].
        restart_noise: Unit noise [N, ...].
        strength: Length of the push relative to the predicted noise; below 0 attracts.
        window: Noise levels (high, low) between which particles repel.
        pause: Noise levels (high, low) between which there is no guidance, or None.
        restart: Noise levels (high, low): at low, new noise lifts the particles to high, or None.
    """
    step, restart_left = 0, strength > 0
    while step < len(sigmas) - 1:
        sigma, next_sigma = sigmas[step], sigmas[step + 1]
        if restart is not None and restart_left and sigma <= restart[1]:
            step, restart_left = next(i for i, s in enumerate(sigmas) if s <= restart[0]), False
            z = z + math.sqrt(sigmas[step] ** 2 - sigma**2) * restart_noise
            continue
        paused = pause is not None and strength > 0 and pause[0] >= sigma >= pause[1]
        x0 = denoise(z, sigma, step == 0 or not paused)
        noise = (z - x0) / sigma
        # Before a pause, the first step is left to guidance if the next one is in the window too
        skipped = pause is not None and step == 0 and next_sigma >= window[1]
        if window[0] >= sigma >= window[1] and not skipped:
            push = pull_back(embed, x0, repulsive_force(embed(x0)))
            longest = MAX_MOVE * next_sigma / (sigma - next_sigma)
            noise = noise - max(-longest, min(strength, longest)) * push / rms(push)
        z = z + (next_sigma - sigma) * noise
        step += 1
    return z


if __name__ == "__main__":
    torch.manual_seed(0)
    modes = 4 * torch.view_as_real(torch.exp(2j * torch.pi / 8 * torch.arange(8)))  # on a circle
    log_weights = torch.tensor([0.93, *[0.01] * 7]).log()  # one mode is the usual one

    def exact(z: Tensor, sigma: float, guided: bool) -> Tensor:
        return torch.softmax(log_weights - torch.cdist(z, modes) ** 2 / (2 * sigma**2), 1) @ modes

    levels, start, fresh = [*torch.logspace(1, -1.5, 25).tolist(), 0.0], *torch.randn(2, 24, 2)
    for strength in (0.0, 0.8):
        found = sample(exact, 10 * start, levels, lambda x: x, fresh, strength)
        count = len(torch.cdist(found, modes).argmin(1).unique())
        print(f"strength {strength}: 24 particles reach {count} of 8 modes")
