"""Diversity of a set of images: the Vendi score and the mean similarity."""

import torch
from torch import Tensor

from fastrepulse.metrics.rows import as_rows

KERNEL_TOLERANCE = 1e-4
"""Largest rounding error that is accepted in a given kernel matrix."""


def vendi_score(
    features: Tensor,  # [N, d]
) -> float:
    """Returns the effective number of different rows (Friedman & Dieng 2023, arXiv:2210.02410).

    The score is exp(-sum(w log w)), where w are the eigenvalues of K / N and K holds the cosine
    similarities of the rows. N copies score 1, N orthogonal rows score N. The eigenvalues are the
    squared singular values of the normalised rows over N, so K is never formed and the cost is
    N d min(N, d).

    Args:
        features: One row per image, [N, d]. A row must not be all zeros.

    Returns:
        The score, in [1, N].

    Raises:
        ValueError: If `features` is not [N, d], or a row is zero or not finite.
    """
    rows = _unit_rows(features)
    return _effective_number(torch.linalg.svdvals(rows).square() / len(rows))


def vendi_score_of_kernel(
    kernel: Tensor,  # [N, N]
) -> float:
    """Returns the Vendi score of images with known similarities; see `vendi_score`.

    Args:
        kernel: Similarities [N, N]: symmetric, positive semi-definite, 1 on the diagonal.

    Returns:
        The score, in [1, N].

    Raises:
        ValueError: If `kernel` is not such a matrix.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or len(kernel) == 0:
        raise ValueError(f"kernel must be [N, N] with N >= 1, got {tuple(kernel.shape)}")
    kernel = as_rows(kernel, "kernel")
    if (kernel.diagonal() - 1).abs().max() > KERNEL_TOLERANCE:
        raise ValueError("kernel must have 1 on its diagonal: divide K_ij by sqrt(K_ii K_jj)")
    if (kernel - kernel.T).abs().max() > KERNEL_TOLERANCE:
        raise ValueError("kernel must be symmetric")
    eigenvalues = torch.linalg.eigvalsh(kernel / len(kernel))
    if (smallest := eigenvalues[0].item()) < -KERNEL_TOLERANCE:
        raise ValueError(
            f"kernel must be positive semi-definite, K/N has eigenvalue {smallest:.3g}"
        )
    return _effective_number(eigenvalues.clamp_min(0))


def mean_pairwise_similarity(
    features: Tensor,  # [N, d]
) -> float:
    """Returns the mean cosine similarity over all pairs i < j of rows.

    The sum over all pairs follows from the squared length of the sum of the normalised rows.

    Args:
        features: One row per image, [N, d] with N >= 2. A row must not be all zeros.

    Returns:
        The mean, in [-1 / (N - 1), 1]; 1 if all rows point the same way.

    Raises:
        ValueError: If `features` is not [N, d] with N >= 2, or a row is zero or not finite.
    """
    rows = _unit_rows(features, at_least=2)
    n = len(rows)
    return (rows.sum(0).square().sum().item() - n) / (n * (n - 1))


def _unit_rows(features: Tensor, at_least: int = 1) -> Tensor:
    rows = as_rows(features, "features", at_least)
    norms = rows.norm(dim=1, keepdim=True)
    bad = (norms == 0) | norms.isinf()
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"features must have rows of finite length above 0, row {row} has not")
    return rows / norms


def _effective_number(eigenvalues: Tensor) -> float:
    """Returns exp of the Shannon entropy of eigenvalues that sum to one."""
    return torch.exp(torch.special.entr(eigenvalues).sum()).item()
