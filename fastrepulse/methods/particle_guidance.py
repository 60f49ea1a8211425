"""Particle Guidance with its fixed potential."""

from dataclasses import dataclass

from torch import Tensor

from fastrepulse.kernels import median_rbf_repulsion
from fastrepulse.methods.embedded import EmbeddedMethod


@dataclass(frozen=True)
class ParticleGuidance(EmbeddedMethod):
    """Adds strength * F_i to the score, F_i = -grad_i sum_j exp(-||phi_i - phi_j||^2 / h).

    The potential is -(1/2) sum_ij k(x_i, x_j) (Corso et al. 2023, arXiv:2310.13102), of the noisy
    latents as in the paper, or of features of the clean prediction (`embedding=...,
    on="denoised"`). The paper's code takes one median per particle and divides by log(N - 1); here
    h is the median over all pairs divided by log N. The paper's strengths are 8 to 50.
    """

    strength: float = 30.0

    def gradient(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        force, _, h = median_rbf_repulsion(embedded)
        return force, h
