"""How far a set of pictures is from what it should look like."""

import torch
from torch import Tensor


def frechet_distance(
    a: Tensor,  # [M, d]
    b: Tensor,  # [N, d]
) -> float:
    """Returns the Fréchet distance between Gaussians fitted to two sets of features.

    ||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500).

    Args:
        a: Features of one set, [M, d].
        b: Features of the other, [N, d].

    Returns:
        The squared distance, at least 0.

    Raises:
        ValueError: If a set has fewer than d + 1 rows, for which its covariance has no full rank
            and the distance depends on the size of the set, or if the widths differ.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features must be [M, d] and [N, d], got {list(a.shape)}, {list(b.shape)}"
        )
    for rows in (a, b):
        if len(rows) <= rows.shape[1]:
            raise ValueError(
                f"a set needs more rows than features, got {len(rows)} rows of {rows.shape[1]}"
            )
    a, b = a.double(), b.double()
    covariance_a, covariance_b = (torch.atleast_2d(torch.cov(rows.T)) for rows in (a, b))
    # tr (S_a S_b)^(1/2) is the sum of the singular values of S_a^(1/2) S_b^(1/2)
    cross = torch.linalg.svdvals(_square_root(covariance_a) @ _square_root(covariance_b)).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum()
    distance = distance + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return distance.clamp_min(0).item()


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
