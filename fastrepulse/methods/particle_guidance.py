"""Particle Guidance with its fixed potential."""

from dataclasses import dataclass

from torch import Tensor

from fastrepulse.kernels import median_rbf_repulsion
from fastrepulse.methods.embedded import EmbeddedMethod


@dataclass(frozen=True)
class ParticleGuidance(EmbeddedMethod):
    """Adds strength * F_i to the score, F_i = -grad_i sum_j exp(-||phi_i - phi_j||^2 / h).

    The potential -(1/2) sum_ij k(x_i, x_j) of Corso et al. 2023, arXiv:2310.13102, in the noisy
    latents (the default, as they have it) or in features of the predicted clean ones
    (`embedding=..., on="denoised"`). Their code takes a median for each particle, minus one under
    the logarithm; here it is the median of all pairs over log N. They use 8 to 50 for strength.
    """

    strength: float = 30.0

    def gradient(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        force, _, h = median_rbf_repulsion(embedded)
        return force, h
