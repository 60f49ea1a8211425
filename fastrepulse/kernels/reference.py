"""The pairwise operations in plain PyTorch; every kernel is tested against them."""

import math

import torch
from torch import Tensor

from fastrepulse.torch_settings import is_limited, precise_dtype


def rbf_repulsion_reference(
    x: Tensor,  # [N, d]
    bandwidth: Tensor | float,
    y: Tensor | None = None,  # [M, d]
    weights: Tensor | None = None,  # [M]
) -> tuple[Tensor, Tensor]:
    """Returns force and similarity of the RBF kernel, like `kernels.rbf_repulsion`."""
    y = x if y is None else y
    offset = y.mean(dim=0)
    x, y = x - offset, y - offset
    # From differences: near-duplicates lose no digits
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    similarity = torch.exp(distance.square() / -bandwidth)  # [N, M]
    if weights is not None:
        similarity = similarity * weights
    total = similarity.sum(dim=1)
    # sum_j w_j k_ij (x_i - y_j) without a tensor of size [N, M, d]
    force = (2 / bandwidth) * (total[:, None] * x - similarity @ y)
    return force, total


def median_sq_distance_reference(x: Tensor, rank: int) -> Tensor:
    """Returns the `rank`-th smallest ||x_i - x_j||^2 over i < j, counted from 0."""
    if is_limited(x.device):
        i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
        distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")[i, j]
    else:
        distances = torch.pdist(x)
    return distances.square().kthvalue(rank + 1).values


def bandwidth_from_median(x: Tensor, median: Tensor) -> Tensor:
    """Returns h = median / log N, at least 1e-4 of the variance, or 1 if all rows are equal."""
    h = median / math.log(len(x))
    x = widen(x)
    norm = torch.linalg.vector_norm(x - x.mean(dim=0), dtype=precise_dtype(x.device))
    h = torch.maximum(h, (1e-4 * norm.square() / len(x)).to(h.dtype))
    return torch.where(h == 0, torch.ones_like(h), h)


def median_rank(n: int, quantile: float = 0.5) -> int:
    """Returns the rank of a quantile among the pairs of N particles, rounded down."""
    return int(quantile * (n * (n - 1) // 2 - 1))


def widen(x: Tensor) -> Tensor:
    """Converts embeddings to the accumulator's dtype: float64 for float64, else float32."""
    return x if x.dtype == torch.float64 else x.float()
