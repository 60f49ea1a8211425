"""The median bandwidth when several ranks split the pairs between them."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastrepulse import native
from fastrepulse.kernels.reference import bandwidth_from_median, median_rank, widen

DIGIT_BITS = 16
BLOCK = 1024
"""Rows and columns of a block of pairs in the plain PyTorch count."""


def shared_median_bandwidth(
    x: Tensor,  # [N, d]
    rank: int,
    world_size: int,
    all_reduce: Callable[[Tensor], Tensor],
) -> Tensor:
    """Computes `median_bandwidth`; every rank visits its share of the pairs.

    This is a radix selection: non-negative floats have the order of their bits. Each pass makes a
    histogram of one digit of the squared distances, and the histograms of all ranks are summed. The
    result is exactly one of the distances and does not depend on the number of ranks.

    Args:
        x: Embeddings [N, d], N >= 2, equal on every rank.
        rank: Index of this process.
        world_size: Number of processes.
        all_reduce: Returns the sum of an integer tensor over all ranks.

    Returns:
        A scalar tensor of the accumulator's dtype.
    """
    x = widen(x.detach()).contiguous()
    below, prefix = median_rank(len(x)), 0
    infinity = int(_bits(torch.tensor([torch.inf], dtype=x.dtype)))
    for shift in range(8 * x.element_size() - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = all_reduce(_count_digits(x, prefix, shift, rank, world_size))
        up_to = counts.cumsum(0)
        digit = int(torch.searchsorted(up_to, below, right=True))
        below -= int(up_to[digit - 1]) if digit else 0
        prefix = prefix << DIGIT_BITS | digit
        if prefix >= infinity >> shift:
            return x.new_full((), torch.nan)
    median = torch.tensor(prefix, dtype=_integer_dtype(x.dtype)).view(x.dtype)
    return bandwidth_from_median(x, median.to(x.device))


def _count_digits(x: Tensor, prefix: int, shift: int, rank: int, world_size: int) -> Tensor:
    """Returns the histogram of one digit over this rank's distances, int64 [2^DIGIT_BITS].

    The digit starts `shift` bits from the end. Only distances with `prefix` above it are counted.
    """
    if x.device.type == "cpu" and native.has_kernel("count_digits_kernel", "cpu"):
        return torch.ops.fastrepulse.count_digits_kernel(x, prefix, shift, rank, world_size)
    return count_digits_reference(x, prefix, shift, rank, world_size)


def count_digits_reference(
    x: Tensor, prefix: int, shift: int, rank: int, world_size: int
) -> Tensor:
    """Computes `_count_digits` in plain PyTorch, one block of pairs at a time."""
    x = x - x.mean(dim=0)
    blocks = x.split(BLOCK)
    norms = x.square().sum(dim=1).split(BLOCK)
    counts = torch.zeros(1 << DIGIT_BITS, dtype=torch.int64, device=x.device)
    pairs = ((i, j) for i in range(len(blocks)) for j in range(i, len(blocks)))
    for number, (i, j) in enumerate(pairs):
        if number % world_size != rank:
            continue
        dots = blocks[i] @ blocks[j].T
        distances = (norms[i][:, None] + norms[j] - 2 * dots).clamp_min(0)
        if i == j:
            above_diagonal = torch.ones_like(distances, dtype=torch.bool).triu(1)
            distances = distances[above_diagonal]
        digits = _bits(distances.flatten()) >> shift
        matching = digits[digits >> DIGIT_BITS == prefix] & (len(counts) - 1)
        counts += torch.bincount(matching, minlength=len(counts))
    return counts


def _integer_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.float64 else torch.int32


def _bits(values: Tensor) -> Tensor:
    return values.view(_integer_dtype(values.dtype)).to(torch.int64)
