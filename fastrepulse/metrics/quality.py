"""How close a set of images is to a reference set: distances and nearest neighbours."""

import warnings

import torch
from torch import Tensor

from fastrepulse.metrics.rows import SmallSetWarning, as_rows, same_width


def frechet_distance(
    a: Tensor,  # [M, d]
    b: Tensor,  # [N, d]
    allow_small_sets: bool = False,
) -> float:
    """Returns the Fréchet distance between Gaussians fitted to two sets of features.

    ||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500).
    With S = X^T X, the trace of the last term is the sum of the singular values of X_a X_b^T. X is
    the centred rows if there are few of them, which makes the cost d M N, and their triangular
    factor otherwise.

    The covariance of d rows or fewer is rank-deficient. The distance then depends on the size of
    the set, so compare it only between sets of the same sizes. `kernel_distance` has no such bias.

    Args:
        a: Features of one set, [M, d].
        b: Features of the other, [N, d].
        allow_small_sets: Whether a set of d rows or fewer (at least 2) causes a warning instead of
            an error. Default False.

    Returns:
        The squared distance, at least 0.

    Raises:
        ValueError: If a set is not [N, d] with N >= 2 and finite, has d rows or fewer and
            `allow_small_sets` is False, or if the widths differ.

    Warns:
        SmallSetWarning: If a set has d rows or fewer and `allow_small_sets` is True.
    """
    a, b = as_rows(a, "a", at_least=2), as_rows(b, "b", at_least=2)
    same_width(a, b, ("a", "b"))
    small = [
        f"{name} has {len(rows)} rows of {rows.shape[1]} features"
        for name, rows in (("a", a), ("b", b))
        if len(rows) <= rows.shape[1]
    ]
    if small:
        message = f"{' and '.join(small)}: the covariance is rank-deficient"
        if not allow_small_sets:
            raise ValueError(f"{message}; give more rows, or allow_small_sets=True")
        warnings.warn(
            f"{message}, compare only sets of the same sizes", SmallSetWarning, stacklevel=2
        )
    factor_a, factor_b = _covariance_factor(a), _covariance_factor(b)
    distance = (a.mean(0) - b.mean(0)).square().sum()
    distance = distance + factor_a.square().sum() + factor_b.square().sum()
    distance = distance - 2 * torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    return distance.clamp_min(0).item()


def _covariance_factor(rows: Tensor) -> Tensor:
    """Returns X [min(N, d), d], where X^T X is the covariance of the rows [N, d]."""
    centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(rows) > rows.shape[1] else centred


def kernel_distance(
    a: Tensor,  # [M, d]
    b: Tensor,  # [N, d]
) -> float:
    """Returns the kernel (Inception) distance: the unbiased squared MMD of a cubic kernel.

    k(x, y) = (x.y / d + 1)^3, averaged over all pairs i != j within each set, and over all pairs
    between them: no subsets are drawn (Bińkowski et al. 2018, arXiv:1801.01401). Its expectation
    does not depend on the sizes of the sets.

    Args:
        a: Features of one set, [M, d] with M >= 2.
        b: Features of the other, [N, d] with N >= 2.

    Returns:
        The squared distance; 0 on average for sets of one distribution, and possibly negative.

    Raises:
        ValueError: If a set is not [N, d] with N >= 2 and finite, or if the widths differ.
    """
    a, b = as_rows(a, "a", at_least=2), as_rows(b, "b", at_least=2)
    same_width(a, b, ("a", "b"))
    within = [
        (_cubic_sum(x, x) - _cubic(x.square().sum(1) / x.shape[1]).sum().item())
        / (len(x) * (len(x) - 1))
        for x in (a, b)
    ]
    return sum(within) - 2 * _cubic_sum(a, b) / (len(a) * len(b))


def _cubic(product: Tensor) -> Tensor:
    return (product + 1) ** 3


def _cubic_sum(a: Tensor, b: Tensor) -> float:
    """Returns the sum of the kernel over all pairs of a row of `a` and a row of `b`."""
    return sum(_cubic(chunk @ b.T / a.shape[1]).sum().item() for chunk in a.split(1024))


def recall_and_coverage(
    features: Tensor,  # [M, d]
    reference: Tensor,  # [N, d]
    k: int = 5,
) -> tuple[float, float]:
    """Returns the recall and the coverage of reference images by k nearest neighbours.

    The ball of a row reaches to its k-th nearest neighbour in its own set, inclusive. The recall is
    the share of reference images in the ball of an image (Kynkäänniemi et al. 2019,
    arXiv:1904.06991). The coverage is the share of reference images with an image in their ball
    (Naeem et al. 2020, arXiv:2002.09797); it is robust to the large ball of an outlier.

    Args:
        features: Features of the images, [M, d] with M > k.
        reference: Features of the reference images, [N, d] with N > k.
        k: Neighbour that a ball reaches to, at least 1. Default 5; Kynkäänniemi et al. use 3.

    Returns:
        The two shares, in [0, 1].

    Raises:
        ValueError: If k is below 1, a set is not finite, has k rows or fewer, or the widths differ.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    features = as_rows(features, "features", at_least=k + 1)
    reference = as_rows(reference, "reference", at_least=k + 1)
    same_width(features, reference, ("features", "reference"))
    between = _distances(features, reference)  # [M, N]
    recalled = (between <= _radii(features, k)[:, None]).any(dim=0)
    covered = (between <= _radii(reference, k)[None, :]).any(dim=0)
    return recalled.double().mean().item(), covered.double().mean().item()


def _radii(rows: Tensor, k: int) -> Tensor:
    """Returns the distance of each row to its k-th nearest neighbour, [N]."""
    # The nearest neighbour is the row itself
    return _distances(rows, rows).kthvalue(k + 1, dim=1).values


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By differences: a matrix product would give copies a distance above 0
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
