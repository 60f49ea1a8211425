"""What is measured of the particles in embedding space at each step."""

import torch
from torch import Tensor

from fastrepulse.methods.duplicates import ROWS
from fastrepulse.torch_settings import is_limited


def mean_distance(embedded: Tensor, rows: int = ROWS, local: slice | None = None) -> Tensor:
    """Returns the mean of ||phi_i - phi_j|| over i != j; memory is `rows` x N.

    With `local` only the pairs (i, j) of these i are summed: the sum over ranks is the mean.
    """
    if local is None and len(embedded) <= rows and not is_limited(embedded.device):
        return torch.pdist(embedded).mean()
    # Centred, where cdist's matrix product cancels least
    embedded = embedded - embedded.mean(dim=0)
    some = embedded if local is None else embedded[local]
    sums = torch.stack([torch.cdist(part, embedded).sum() for part in some.split(rows)])
    return sums.sum() / (len(embedded) * (len(embedded) - 1))


def root_mean_square(force: Tensor) -> Tensor:
    """Returns the root mean square over particles of the norm of a force [N, d]."""
    return force.square().sum(dim=1).mean().sqrt()
