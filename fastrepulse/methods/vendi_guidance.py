"""Vendi guidance: gradient ascent on the Vendi score of the particles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastrepulse.kernels import median_bandwidth
from fastrepulse.methods.embedded import EmbeddedMethod
from fastrepulse.torch_settings import is_limited


@dataclass(frozen=True)
class VendiGuidance(EmbeddedMethod):
    """Adds strength * N grad_i log VS to the score, log VS = -tr (K/N) log (K/N).

    The potential is the entropy of the kernel matrix's eigenvalues (Friedman & Dieng 2023,
    arXiv:2210.02410; as guidance: Askari Hemmat et al. 2024, "Improving Geo-diversity of Generated
    Images with Contextualized Vendi Score Guidance", arXiv:2406.04551), here without a memory of
    examples and with an RBF kernel. Its differential is tr(G dK) with G = -(log(K/N) + 1) / N. Each
    step computes the eigenvalues of an N x N matrix, so N is limited to a few thousand.
    """

    strength: float = 30.0

    def gradient(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        n, h = len(embedded), median_bandwidth(embedded)
        x = (embedded.cpu() if is_limited(embedded.device) else embedded).double()
        kernel = torch.exp(-torch.cdist(x, x).square() / h.to(x.device))
        values, vectors = torch.linalg.eigh(kernel / n)
        logarithm = (vectors * values.clamp_min(1e-12).log()) @ vectors.T
        weights = -(logarithm + torch.eye(n).to(x)) * kernel  # N G K, elementwise
        # d k_ij / d phi_i = -(2/h) k_ij (phi_i - phi_j), twice in the trace
        pull = weights.sum(dim=1, keepdim=True) * x - weights @ x
        return -4 / h * pull.to(embedded), h
