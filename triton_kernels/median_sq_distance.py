"""An exact order statistic of the pairwise squared distances.

For few particles, all distances are stored and sorted. For many, nothing is stored: this is a radix
selection, since non-negative floats have the order of their bits. Each of three passes recomputes
all distances and makes a histogram of the next digit, over the distances whose higher digits are
those found so far.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrepulse.triton_kernels.pairwise import block_products, pad_rows, sq_distances, sq_norms
from fastrepulse.triton_kernels.panels import PANEL_MULTIPLE, panel_kernel, round_up
from fastrepulse.triton_kernels.tiles import (
    WORKSPACE,
    multiprocessors,
    precision_for,
    split_work,
    tiles_for,
)

# Largest N whose distances are stored and sorted. Below it, three passes would spend their time on
# launches and not on products
MAX_SORTED = 1024

# (bits below the digit, bits of the digit). 31 bits in all, because the sign bit is 0
DIGITS = ((20, 11), (9, 11), (0, 9))
BINS = 2**11


# Every pass uses the same compiled kernel, so the distances are equal bit for bit
@triton.jit(do_not_specialize=["shift", "bits"])
def histogram_kernel(
    p_x,
    p_norms,
    p_prefix,
    p_counts,
    n,
    d,
    shift,
    bits,
    BINS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Makes a histogram of one digit of the squared distances with the prefix above it."""
    first_row = tl.program_id(0) * ROWS
    prefix = tl.load(p_prefix)
    b_counts = tl.zeros([BINS], tl.int64)
    # Programs take turns at the blocks of columns, starting at the diagonal
    start = first_row + tl.program_id(1) * COLUMNS
    for first_column in range(start, n, tl.num_programs(1) * COLUMNS):
        b_products = block_products(
            p_x, p_x, first_row, first_column, n, n, 0, d, d, PRECISION, ROWS, COLUMNS, DEPTH
        )
        b_sq = sq_distances(b_products, p_norms, p_norms, first_row, first_column, n, n)
        b_bits = b_sq.to(tl.int32, bitcast=True)
        rows = first_row + tl.arange(0, ROWS)
        columns = first_column + tl.arange(0, COLUMNS)
        m_pairs = (rows[:, None] < columns[None, :]) & (columns < n)[None, :]
        m_pairs = m_pairs & (b_bits >> (shift + bits) == prefix)
        b_digits = (b_bits >> shift) & ((1 << bits) - 1)
        m_pairs = tl.reshape(m_pairs, [ROWS * COLUMNS])
        b_digits = tl.reshape(b_digits, [ROWS * COLUMNS])
        b_counts += tl.histogram(b_digits, BINS, m_pairs).to(tl.int64)
    tl.atomic_add(p_counts + tl.arange(0, BINS), b_counts, sem="relaxed")


def median_sq_distance_kernel(
    x: Tensor,  # [N, d]
    rank: int,
) -> Tensor:  # []
    """Returns the rank-th smallest ||x_i - x_j||^2 over i < j.

    Args:
        x: Embeddings [N, d], contiguous, float32, float16 or bfloat16, centred, N >= 2.
        rank: From 0 for the smallest to N (N - 1) / 2 - 1. Half of that gives the lower median.

    Returns:
        A float32 scalar on the device of `x`. The host does not wait for the device.
    """
    x = pad_rows(x)
    with torch.cuda.device_of(x):
        norms = sq_norms(x)
        if len(x) <= MAX_SORTED:
            return _distances(x, norms).sort().values[rank]
        return _radix_select(x, norms, rank)


def _distances(x: Tensor, norms: Tensor) -> Tensor:
    """Returns ||x_i - x_j||^2 over i < j, [N (N - 1) / 2]; programs split d."""
    n, d = x.shape
    tile = tiles_for(x)["panel"]
    grid = triton.cdiv(n, tile.rows), triton.cdiv(n, tile.columns)
    side = round_up(n, PANEL_MULTIPLE)
    splits, depth_per_split = split_work(
        *(d, tile.depth),
        programs=triton.cdiv(2 * multiprocessors(x.device), grid[0] * grid[1]),
        max_parts=WORKSPACE // side**2,
    )
    products = torch.empty(splits, side, side, dtype=torch.float32, device=x.device)
    panel_kernel[(*grid, splits)](
        *(x, x, norms, norms, None, norms, products),
        *(0, 0, side, side, n, n, d, depth_per_split),
        SPLIT=True,
        SELF=True,
        PRECISION=precision_for(x),
        **tile.options(),
    )
    i, j = torch.triu_indices(n, n, offset=1, device=x.device)
    return (norms[i] + norms[j] - 2 * products.sum(dim=0)[i, j]).clamp_min(0)


def _radix_select(x: Tensor, norms: Tensor, rank: int) -> Tensor:
    """Returns the rank-th smallest squared distance, found digit by digit."""
    n, d = x.shape
    tile = tiles_for(x)["histogram"]
    blocks = triton.cdiv(n, tile.rows)
    splits = min(triton.cdiv(2 * multiprocessors(x.device), blocks), triton.cdiv(n, tile.columns))
    below = torch.full((1,), rank, dtype=torch.int64, device=x.device)
    prefix = torch.zeros(1, dtype=torch.int32, device=x.device)
    for shift, bits in DIGITS:
        counts = torch.zeros(BINS, dtype=torch.int64, device=x.device)
        histogram_kernel[(blocks, splits)](
            *(x, norms, prefix, counts, n, d, shift, bits),
            BINS=BINS,
            PRECISION=precision_for(x),
            **tile.options(),
        )
        up_to = counts.cumsum(dim=0)
        digit = torch.searchsorted(up_to, below, right=True)
        below -= (up_to - counts).gather(0, digit)
        prefix = prefix << bits | digit.to(torch.int32)
    return prefix.view(torch.float32).squeeze(0)
