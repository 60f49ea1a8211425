"""Exact duplicates: the force between them is zero, so they are moved apart first."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ROWS = 1024
"""Rows per block, which limits temporary memory."""


def separate_duplicates(
    embedded: Tensor, seed: int, bandwidth: float | Tensor | None = None
) -> Tensor:
    """Moves embeddings that coincide exactly apart, by a tenth of the kernel's width.

    The force between exact duplicates is zero, so they would never separate. The direction is drawn
    from the seed. Embeddings without a duplicate are unchanged.

    Args:
        embedded: Embeddings [N, d].
        seed: Seed of the directions.
        bandwidth: h of the kernel; by default an estimate of the median heuristic. If all
            embeddings coincide, the move is a thousandth of their norm.
    """
    duplicate = find_duplicates(embedded)
    if duplicate is None:
        return embedded
    if bandwidth is None:
        # The mean squared distance is twice the variance and close to the median
        variance = embedded.var(dim=0, correction=0).sum()
        norm = embedded.square().sum(dim=1).mean()
        bandwidth = torch.maximum(2 * variance / math.log(max(len(embedded), 2)), 1e-4 * norm)
    else:
        bandwidth = torch.as_tensor(bandwidth)
    generator = torch.Generator().manual_seed(seed % 2**63)
    length = 0.1 * (bandwidth / embedded.shape[1]).sqrt()

    def jittered(rows: Tensor, is_duplicate: Tensor) -> Tensor:
        direction = torch.randn(rows.shape, generator=generator, dtype=torch.float32).to(rows)
        return torch.where(is_duplicate[:, None], rows + length * direction, rows)

    blocks = zip(embedded.split(ROWS), duplicate.split(ROWS), strict=True)
    return torch.cat([jittered(rows, is_duplicate) for rows, is_duplicate in blocks])


def is_at_hand(tensor: Tensor) -> bool:
    """Whether the host can read a tensor without waiting for another device."""
    return tensor.device.type == "cpu"


@lru_cache(maxsize=64)
def odd_numbers(count: int) -> np.ndarray:
    """Returns random odd integers of 63 bits, always the same."""
    return np.random.default_rng(0).integers(2**62, size=count) * 2 + 1


def find_duplicates(rows: Tensor) -> Tensor | None:
    """Returns a mask [N] of the rows [N, d] that equal another row exactly.

    Returns None if no row has a duplicate and this is known without waiting for a GPU. Rows are
    compared by a 64-bit hash: the sum of their bits times odd integers.
    """
    kind = torch.int64 if rows.dtype == torch.float64 else torch.int32
    odd = torch.from_numpy(odd_numbers(rows.shape[1])).to(rows.device)
    # Adding 0.0 turns -0.0 into 0.0
    bits = ((part + 0.0).contiguous().view(kind).to(torch.int64) for part in rows.split(ROWS))
    hashes, order = torch.cat([(part * odd).sum(dim=1) for part in bits]).sort()
    none, same = hashes.new_zeros(1, dtype=torch.bool), hashes[1:] == hashes[:-1]
    if is_at_hand(same) and not same.any():
        return None
    duplicate = torch.cat([none, same]) | torch.cat([same, none])
    return torch.empty_like(duplicate).scatter_(0, order, duplicate)
