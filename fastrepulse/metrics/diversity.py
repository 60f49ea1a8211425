"""How many different pictures a set effectively holds."""

import math

import torch
from torch import Tensor

from fastrepulse.metrics.rows import as_rows


def vendi_score(
    features: Tensor,  # [N, d]
    order: float = 1,
) -> float:
    """Returns the effective number of different rows: exp of the entropy of the eigenvalues of K/N.

    K is the cosine similarity of the rows (Friedman & Dieng 2023, arXiv:2210.02410), the entropy
    Rényi's of order q (Pasarkar & Dieng 2023, arXiv:2310.12952), so N copies score 1 and N
    orthogonal rows N at every order. A low order counts rare kinds as much as common ones, a high
    one only the most common. The eigenvalues are the squared singular values of the normalised rows
    over N: K is never formed, and the cost is N d min(N, d).

    Args:
        features: One row a picture, [N, d]; a row of zeros has no direction.
        order: q in [0, inf]: 0 counts dimensions (the rank), 1 is Shannon's entropy, 2 is
            1 / sum(eigenvalue^2), inf is 1 / the largest eigenvalue. Default 1.

    Returns:
        The score, in [1, N].

    Raises:
        ValueError: If `features` is not [N, d], a row is zero or not finite, or `order` is negative
            or no number.
    """
    _check_order(order)
    rows = _directions(features)
    singular = torch.linalg.svdvals(rows)
    # The threshold of numerical rank, for features computed in float32
    singular = singular[singular > max(rows.shape) * _EPS * singular.max()]
    return _effective_number(singular.square() / len(rows), order)


def vendi_score_of_kernel(
    kernel: Tensor,  # [N, N]
    order: float = 1,
) -> float:
    """Returns the Vendi score of pictures whose similarities are given, by the eigenvalues of K/N.

    See `vendi_score`. It is a function of its own because a matrix [N, N] may be either, and the
    two are checked for different things.

    Args:
        kernel: Similarities [N, N]: symmetric, positive semi-definite, 1 on the diagonal.
        order: q in [0, inf]. Default 1.

    Returns:
        The score, in [1, N].

    Raises:
        ValueError: If `kernel` is not such a matrix, or `order` is negative or no number.
    """
    _check_order(order)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or len(kernel) == 0:
        raise ValueError(f"kernel must be [N, N] with N >= 1, got {tuple(kernel.shape)}")
    kernel = as_rows(kernel, "kernel")
    if (kernel.diagonal() - 1).abs().max() > _KERNEL_ERROR:
        raise ValueError("kernel must have 1 on its diagonal: divide K_ij by sqrt(K_ii K_jj)")
    if (kernel - kernel.T).abs().max() > _KERNEL_ERROR:
        raise ValueError("kernel must be symmetric")
    eigenvalues = torch.linalg.eigvalsh(kernel / len(kernel))
    if (smallest := eigenvalues[0].item()) < -_KERNEL_ERROR:
        raise ValueError(
            f"kernel must be positive semi-definite, K/N has eigenvalue {smallest:.3g}"
        )
    floor = len(kernel) * _EPS * eigenvalues[-1]
    return _effective_number(eigenvalues[eigenvalues > floor], order)


def rke(
    features: Tensor,  # [N, d]
    bandwidth: float,
) -> float:
    """Returns the number of modes by the Rényi kernel entropy of order 2: 1 / ||K/N||_F^2.

    K_ij = exp(-||x_i - x_j||^2 / (2 bandwidth^2)) (Jalali, Li & Farnia 2023, RKE-MC): the Vendi
    score of order 2 of that kernel, without eigenvalues.

    Args:
        features: One row a picture, [N, d].
        bandwidth: The distance at which pictures count as different, in the unit of the features,
            > 0. It has no default because only figures of one bandwidth can be compared: take, for
            all sets, say half the median distance between the pictures of a reference set.

    Returns:
        The number, in [1, N].

    Raises:
        ValueError: If `features` is not [N, d] and finite, or `bandwidth` not above 0.
    """
    rows = as_rows(features, "features")
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be above 0 and finite, got {bandwidth}")
    total = sum(
        torch.cdist(chunk, rows).div(bandwidth).square().neg().exp().sum().item()
        for chunk in rows.split(1024)
    )
    return len(rows) ** 2 / total


def mean_pairwise_similarity(
    features: Tensor,  # [N, d]
) -> float:
    """Returns the mean cosine similarity over all pairs i < j of rows.

    The sum over all pairs is the squared length of the sum of the normalised rows.

    Args:
        features: One row a picture, [N, d] with N >= 2; a row of zeros has no direction.

    Returns:
        The mean, in [-1 / (N - 1), 1]; 1 if all rows point the same way.

    Raises:
        ValueError: If `features` is not [N, d] with N >= 2, or a row is zero or not finite.
    """
    rows = _directions(features, at_least=2)
    n = len(rows)
    return (rows.sum(0).square().sum().item() - n) / (n * (n - 1))


_EPS = torch.finfo(torch.float32).eps
"""The precision of features, whatever they are stored in: they come from float32 networks."""

_KERNEL_ERROR = 1e-4
"""How far a given kernel may be from being one, by rounding."""


def _directions(features: Tensor, at_least: int = 1) -> Tensor:
    """Returns the rows [N, d] at unit length."""
    rows = as_rows(features, "features", at_least)
    norms = rows.norm(dim=1, keepdim=True)
    bad = (norms == 0) | norms.isinf()
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"features must have rows of finite length other than 0, row {row} is not")
    return rows / norms


def _check_order(order: float) -> None:
    if not order >= 0:
        raise ValueError(f"order must be in [0, inf], got {order}")


def _effective_number(eigenvalues: Tensor, order: float) -> float:
    """Returns exp of the Rényi entropy of positive eigenvalues that sum to one (Hill's number)."""
    if math.isinf(order):
        return 1 / eigenvalues.max().item()
    # At the limit 0 / 0
    if math.isclose(order, 1):
        return torch.exp(torch.special.entr(eigenvalues).sum()).item()
    # By logarithms, because powers of a high order underflow
    log_sum = torch.logsumexp(order * eigenvalues.log(), dim=0)
    return torch.exp(log_sum / (1 - order)).item()
