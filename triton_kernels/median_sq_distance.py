"""An exact order statistic of the pairwise squared distances.

Those of few particles are kept, and sorted. Of many none is stored: non-negative floats order as
their bits do, so three passes over all pairs, each of which recomputes the distances and counts the
next digit of those that match the digits known so far, find any rank.
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
    share_out,
    tiles_for,
)

# The most particles whose distances are kept: in three passes over them the launches, and not the
# products, would take the time
MAX_KEPT = 1024

# (bits below the digit, bits of the digit): 31 in all, since the sign is known
DIGITS = ((20, 11), (9, 11), (0, 9))
BINS = 2**11


# One compilation serves every pass, so that each sees the same distances to the last bit
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
    """Counts one digit of the squared distances whose higher digits are the prefix."""
    first_row = tl.program_id(0) * ROWS
    prefix = tl.load(p_prefix)
    b_counts = tl.zeros([BINS], tl.int64)
    # Each program has its share of the columns from the diagonal on
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
    """Returns the rank-th smallest of ||x_i - x_j||^2 over i < j, by radix selection.

    Args:
        x: Embeddings [N, d], contiguous, float32, float16 or bfloat16, centred, N >= 2.
        rank: From 0 for the smallest to N (N - 1) / 2 - 1; half of that for the lower median.

    Returns:
        A float32 scalar, on the device of `x`; the host never waits for its value.
    """
    x = pad_rows(x)
    with torch.cuda.device_of(x):
        norms = sq_norms(x)
        if len(x) <= MAX_KEPT:
            return _distances(x, norms).sort().values[rank]
        return _counted(x, norms, rank)


def _distances(x: Tensor, norms: Tensor) -> Tensor:
    """Returns ||x_i - x_j||^2 over i < j, [N (N - 1) / 2], programs having shared out d."""
    n, d = x.shape
    tile = tiles_for(x)["panel"]
    grid = triton.cdiv(n, tile.rows), triton.cdiv(n, tile.columns)
    side = round_up(n, PANEL_MULTIPLE)
    splits, depth_per_split = share_out(
        *(d, tile.depth),
        programs=triton.cdiv(2 * multiprocessors(x.device), grid[0] * grid[1]),
        most=WORKSPACE // side**2,
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


def _counted(x: Tensor, norms: Tensor, rank: int) -> Tensor:
    """Returns the distance of a rank, found digit by digit."""
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
