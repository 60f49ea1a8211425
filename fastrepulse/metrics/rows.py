"""What every metric asks of the features that it is given."""

import torch
from torch import Tensor


class SmallSetWarning(UserWarning):
    """A set is so small that the figure depends on its size as well as on its pictures."""


def as_rows(
    features: Tensor,  # [N, d]
    name: str,
    at_least: int = 1,
) -> Tensor:
    """Returns features in float64, in which all metrics are computed.

    Args:
        features: One row a picture, [N, d].
        name: What the caller's argument is called, for the message.
        at_least: The smallest N that has a meaning.

    Raises:
        ValueError: If `features` is not [N, d] with N >= `at_least` and d >= 1, or a row is not
            finite.
    """
    if features.ndim != 2 or len(features) < at_least or features.shape[1] == 0:
        raise ValueError(
            f"{name} must be [N, d] with N >= {at_least} and d >= 1, got {tuple(features.shape)}"
        )
    bad = ~torch.isfinite(features).all(dim=1)
    if bad.any():
        raise ValueError(f"{name} must be finite, row {int(bad.nonzero()[0])} is not")
    return features.double()


def same_width(a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    """Raises if two sets have features of different width, which cannot be compared.

    Raises:
        ValueError: If the widths differ.
    """
    if a.shape[1] != b.shape[1]:
        first, second = names
        raise ValueError(
            f"{first} and {second} must have as many features,"
            f" got {tuple(a.shape)} and {tuple(b.shape)}"
        )
