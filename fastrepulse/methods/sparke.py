"""SPARKE: gradient ascent on the Rényi kernel entropy of the particles."""

from dataclasses import dataclass

from torch import Tensor

from fastrepulse.kernels import median_bandwidth, rbf_repulsion
from fastrepulse.methods.embedded import EmbeddedMethod


@dataclass(frozen=True)
class SPARKE(EmbeddedMethod):
    """Adds strength * N grad_i H_2 to the score, H_2 = -log (1/N^2) sum_ij k_ij^2.

    The order-2 entropy of the kernel matrix, whose exponential is the RKE score (Jalali et al.
    2025, "SPARKE: Scalable Prompt-Aware Diversity Guidance in Diffusion Models via RKE Score",
    arXiv:2506.10173), of the noisy latents as in the paper. The square of an RBF kernel is an RBF
    kernel of half the bandwidth, so the sum is of the same kind. The factor N keeps the gradient of
    a particle independent of N.
    """

    strength: float = 30.0

    def gradient(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        h = median_bandwidth(embedded)
        force, similarity = rbf_repulsion(embedded, h / 2)
        # The sum contains the pair (i, j) twice
        return 2 * len(embedded) * force / similarity.sum(), h
