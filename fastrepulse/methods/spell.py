"""SPELL: sparse repellency."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrepulse.checks import check_positive
from fastrepulse.methods.base import Method, Particles, Push


@dataclass(frozen=True, eq=False)
class SPELL(Method):
    """Moves a predicted image out of the balls around the other images.

        x0_i <- x0_i + overcompensation * sum_j ReLU(r / ||x0_i - x0_j|| - 1) (x0_i - x0_j)

    Kirchhof et al. 2024, "Shielded Diffusion: Generating Novel and Diverse Images using Sparse
    Repellency", arXiv:2410.06025. j runs over the other particles of the prompt and over protected
    images. Particles further than r from all others do not move.

    Args:
        radius: r as a root mean square over the entries of the latents, above 0: ||x0_i - x0_j|| is
            divided by the square root of C H W.
        overcompensation: Factor on the move, which makes up for the model's pull back; the paper
            uses 1.6.
        protected: Clean latents [M, C, H, W] to keep away from, or None.
    """

    radius: float = 1.0
    overcompensation: float = 1.6
    protected: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("radius", "overcompensation"):
            check_positive(name, getattr(self, name))
        if self.protected is not None and self.protected.ndim != 4:
            raise ValueError(f"protected must be [M, C, H, W], got {tuple(self.protected.shape)}")

    @property
    def acts_on_one(self) -> bool:
        return self.protected is not None

    def push(self, particles: Particles) -> Push:
        protected = None
        if self.protected is not None:
            if self.protected.shape[1:] != particles.denoised.shape[1:]:
                raise ValueError(
                    f"protected must be {list(particles.denoised.shape[1:])} like the latents, "
                    f"got {list(self.protected.shape[1:])}"
                )
            protected = self.protected.to(particles.device).flatten(1).float()
        moves = []
        for own in particles.prompts():
            x = particles.denoised[own].to(particles.device).flatten(1).float()
            radius = self.radius * math.sqrt(x.shape[1])
            move = move_out(x, x, radius)
            if protected is not None:
                move = move + move_out(x, protected, radius)
            moves.append(move)
        scale = self.overcompensation / particles.sigma**2
        return Push.of(scale * torch.cat(moves).view_as(particles.denoised), particles)


def move_out(
    x: Tensor,  # [N, D]
    centres: Tensor,  # [M, D]
    radius: float,
    rows: int = 1024,
) -> Tensor:  # [N, D]
    """Returns sum_j ReLU(r / ||x_i - c_j|| - 1) (x_i - c_j); memory is `rows` x M.

    A particle does not move out of the ball around itself.
    """
    moves = []
    for part in x.split(rows):
        distance = torch.cdist(part, centres, compute_mode="donot_use_mm_for_euclid_dist")
        weights = torch.where(distance > 0, (radius / distance.clamp_min(1e-6) - 1).relu(), 0)
        moves.append(weights.sum(dim=1, keepdim=True) * part - weights @ centres)
    return torch.cat(moves)
