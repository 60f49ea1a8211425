"""The median distance of particles whose pairs several processes share out."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastrepulse import native
from fastrepulse.kernels.reference import bandwidth_from_median, median_rank, widen

DIGIT_BITS = 16
BLOCK = 1024
"""Rows of a block of pairs, where they are counted in PyTorch."""


def shared_median_bandwidth(
    x: Tensor,  # [N, d]
    part: int,
    parts: int,
    total: Callable[[Tensor], Tensor],
) -> Tensor:
    """Computes `median_bandwidth` where every process counts a part of the pairs.

    The median is found digit by digit from the bits of the distances, as floats that are not
    negative order: each pass counts how many distances have which digit, and the counts are added
    up. It is one of the distances, and the same however many parts there are.

    Args:
        x: Embeddings [N, d], N >= 2, the same in every process.
        part: The number of this process.
        parts: How many there are.
        total: Returns the sum over all processes of a tensor of whole numbers.

    Returns:
        A scalar tensor of the accumulator's dtype.
    """
    x = widen(x.detach()).contiguous()
    rank, found = median_rank(len(x)), 0
    infinity = int(_as_integers(torch.tensor([torch.inf], dtype=x.dtype)))
    for shift in range(8 * x.element_size() - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = total(_count_digits(x, found, shift, part, parts))
        below = counts.cumsum(0)
        digit = int(torch.searchsorted(below, rank, right=True))
        rank -= int(below[digit - 1]) if digit else 0
        found = found << DIGIT_BITS | digit
        if found >= infinity >> shift:
            return x.new_full((), torch.nan)
    median = torch.tensor(found, dtype=_integers(x.dtype)).view(x.dtype)
    return bandwidth_from_median(x, median.to(x.device))


def _count_digits(x: Tensor, found: int, shift: int, part: int, parts: int) -> Tensor:
    """Returns how many distances of a part have which digit, [2^DIGIT_BITS] of int64.

    Counted are those whose bits above the digit, which is `shift` bits from the end, are `found`.
    """
    if x.device.type == "cpu" and native.has_kernel("count_digits_kernel", "cpu"):
        return torch.ops.fastrepulse.count_digits_kernel(x, found, shift, part, parts)
    return count_digits_reference(x, found, shift, part, parts)


def count_digits_reference(x: Tensor, found: int, shift: int, part: int, parts: int) -> Tensor:
    """Counts as `_count_digits`, in plain PyTorch, block by block of pairs."""
    x = x - x.mean(dim=0)
    blocks = x.split(BLOCK)
    norms = x.square().sum(dim=1).split(BLOCK)
    counts = torch.zeros(1 << DIGIT_BITS, dtype=torch.int64, device=x.device)
    pairs = ((i, j) for i in range(len(blocks)) for j in range(i, len(blocks)))
    for number, (i, j) in enumerate(pairs):
        if number % parts != part:
            continue
        dots = blocks[i] @ blocks[j].T
        distances = (norms[i][:, None] + norms[j] - 2 * dots).clamp_min(0)
        if i == j:
            above_diagonal = torch.ones_like(distances, dtype=torch.bool).triu(1)
            distances = distances[above_diagonal]
        digits = _as_integers(distances.flatten()) >> shift
        matching = digits[digits >> DIGIT_BITS == found] & (len(counts) - 1)
        counts += torch.bincount(matching, minlength=len(counts))
    return counts


def _integers(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.float64 else torch.int32


def _as_integers(values: Tensor) -> Tensor:
    return values.view(_integers(values.dtype)).to(torch.int64)
