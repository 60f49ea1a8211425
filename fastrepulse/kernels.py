"""The pairwise operations that everything else calls, whatever computes them.

Today they run in plain PyTorch (`reference.py`), with memory N x N; no caller depends on that.
"""

import math

import torch
from torch import Tensor

from fastrepulse.reference import median_sq_distance_reference, rbf_repulsion_reference


def rbf_repulsion(
    x: Tensor,  # [N, d]
    bandwidth: float,
) -> tuple[Tensor, Tensor]:
    """Computes the repulsive force of an RBF kernel, and how similar each particle is to all.

    With k_ij = exp(-||x_i - x_j||^2 / h), the force is F_i = (2 / h) sum_j k_ij (x_i - x_j), which
    is -grad_{x_i} sum_j k_ij and points away from the other particles (Liu & Wang 2016,
    arXiv:1608.04471; Pondaven 2023).

    Args:
        x: Embeddings [N, d], float32 or float64; half precision is computed in float32.
        bandwidth: h > 0, in units of squared distance.

    Returns:
        The force [N, d] and the similarity sum_j k_ij [N], in which a particle counts itself as 1.

    Raises:
        TypeError: If `x` is not a floating-point tensor.
        ValueError: If `x` is not [N, d] or `bandwidth` is not a positive number.
    """
    _check_embeddings(x)
    if not (math.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"bandwidth must be a positive number, got {bandwidth}")
    force, similarity = rbf_repulsion_reference(_accumulator(x), float(bandwidth))
    return force.to(x.dtype), similarity.to(x.dtype)


def median_sq_distance(x: Tensor) -> Tensor:
    """Computes the lower median of ||x_i - x_j||^2 over the pairs i < j.

    Args:
        x: Embeddings [N, d], N >= 2.

    Returns:
        A scalar tensor.

    Raises:
        TypeError: If `x` is not a floating-point tensor.
        ValueError: If `x` is not [N, d] with N >= 2.
    """
    _check_embeddings(x)
    if len(x) < 2:
        raise ValueError(f"a median distance needs at least 2 embeddings, got {len(x)}")
    return median_sq_distance_reference(_accumulator(x)).to(x.dtype)


def _check_embeddings(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"embeddings must be a floating-point tensor, got {_kind(x)}")
    if x.ndim != 2:
        raise ValueError(f"embeddings must be [N, d], got {tuple(x.shape)}")


def _kind(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__


def _accumulator(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
