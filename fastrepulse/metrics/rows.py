"""Checks of the features given to the metrics."""

import torch
from torch import Tensor

from fastrepulse.torch_settings import is_limited


class SmallSetWarning(UserWarning):
    """A set is so small that the result depends on its size."""


def as_rows(features: Tensor, name: str, at_least: int = 1) -> Tensor:
    """Returns features [N, d] in float64, the precision of all metrics.

    A device without float64 leaves the work to the CPU.

    Raises ValueError, with the caller's name of the argument, unless N >= `at_least`, d >= 1 and
    every value is finite.
    """
    if features.ndim != 2 or len(features) < at_least or features.shape[1] == 0:
        raise ValueError(
            f"{name} must be [N, d] with N >= {at_least} and d >= 1, got {tuple(features.shape)}"
        )
    if is_limited(features.device):
        features = features.cpu()
    bad = ~torch.isfinite(features).all(dim=1)
    if bad.any():
        raise ValueError(f"{name} must be finite, row {int(bad.nonzero()[0])} is not")
    return features.double()


def same_width(a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    """Raises ValueError if two sets have different numbers of features."""
    if a.shape[1] != b.shape[1]:
        first, second = names
        raise ValueError(
            f"{first} and {second} must have equally many features,"
            f" got {tuple(a.shape)} and {tuple(b.shape)}"
        )
