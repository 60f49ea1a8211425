"""The pairwise operations in plain PyTorch: the truth that every kernel is tested against."""

import torch
from torch import Tensor


def pairwise_sq_distance(x: Tensor) -> Tensor:
    """Returns ||x_i - x_j||^2, [N, N], from differences, so near-duplicates do not cancel."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(x, x, compute_mode=mode).square()


def rbf_repulsion_reference(
    x: Tensor,  # [N, d]
    bandwidth: float,
) -> tuple[Tensor, Tensor]:
    """Returns force and similarity of the RBF kernel, as `kernels.rbf_repulsion`."""
    centred = x - x.mean(dim=0)
    similarity = torch.exp(pairwise_sq_distance(centred) / -bandwidth)  # [N, N]
    total = similarity.sum(dim=1)
    # Sum_j k_ij (x_i - x_j), without anything of size [N, N, d]
    force = (2 / bandwidth) * (total[:, None] * centred - similarity @ centred)
    return force, total


def median_sq_distance_reference(x: Tensor) -> Tensor:
    """Returns the lower median of ||x_i - x_j||^2 over i < j, as `kernels.median_sq_distance`."""
    return torch.pdist(x).square().median()
