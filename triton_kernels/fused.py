"""Force and similarity in one pass, like flash attention, for rows that fit in one program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrepulse.triton_kernels.pairwise import (
    as_operand,
    load_rows,
    own_weights,
    pair_weights,
    sq_distances,
)
from fastrepulse.triton_kernels.tiles import (
    WORKSPACE,
    Tile,
    multiprocessors,
    precision_for,
    split_work,
    tiles_for,
)


@triton.jit
def fused_kernel(
    p_x,
    p_y,
    p_norms_x,
    p_norms_y,
    p_weights,
    p_bandwidth,
    p_force,
    p_similarity,
    n,
    m,
    d,
    columns_per_split,
    SELF: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    split = tl.program_id(1)
    b_x = load_rows(p_x, first_row, n, 0, d, ROWS, DEPTH)
    b_total = tl.zeros([ROWS], tl.float32)
    b_sum = tl.zeros([ROWS, DEPTH], tl.float32)
    start = split * columns_per_split
    for first_column in range(start, tl.minimum(start + columns_per_split, m), COLUMNS):
        b_y = load_rows(p_y, first_column, m, 0, d, COLUMNS, DEPTH)
        b_products = tl.dot(b_x, tl.trans(b_y), input_precision=PRECISION)
        b_sq = sq_distances(b_products, p_norms_x, p_norms_y, first_row, first_column, n, m)
        b_k = pair_weights(b_sq, p_weights, p_bandwidth, first_row, first_column, m, SELF)
        # Both sums use the weights rounded for the product. Each term of sum_j k_ij (x_i - y_j)
        # then has the relative error of its k_ij only
        b_k = b_k.to(p_y.dtype.element_ty)
        b_total += tl.sum(b_k.to(tl.float32), 1)
        b_sum = tl.dot(as_operand(b_k), b_y, b_sum, input_precision=PRECISION)
    b_force = 2.0 / tl.load(p_bandwidth) * (b_total[:, None] * b_x.to(tl.float32) - b_sum)
    b_own = own_weights(p_weights, first_row, n, SELF, ROWS)
    b_total += tl.where(split == 0, b_own, 0.0)

    rows = tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    m_rows = first_row + rows < n
    m_force = m_rows[:, None] & (depth < d)[None, :]
    p_rows = p_force + tl.cast(split * n + first_row, tl.int64) * d
    tl.store(p_rows + rows[:, None] * d + depth[None, :], b_force, mask=m_force)
    tl.store(p_similarity + split * n + first_row + rows, b_total, mask=m_rows)


def fused_tile(x: Tensor) -> Tile | None:
    """Returns the tile that holds whole rows of `x`, or None if the rows are too wide."""
    return tiles_for(x).get(f"fused_{max(64, triton.next_power_of_2(x.shape[1]))}")


def launch_fused(
    tile: Tile,
    x: Tensor,  # [N, d]
    y: Tensor,  # [M, d]
    norms_x: Tensor,  # [N]
    norms_y: Tensor,  # [M]
    weights: Tensor | None,  # [M]
    bandwidth: Tensor,  # []
) -> tuple[Tensor, Tensor]:
    """Returns force [N, d] and similarity [N]; `tile` comes from `fused_tile(x)`."""
    (n, d), m = x.shape, len(y)
    row_blocks = triton.cdiv(n, tile.rows)
    # With few rows, several programs split a row's columns to keep the device busy
    splits, columns_per_split = split_work(
        *(m, tile.columns),
        programs=triton.cdiv(2 * multiprocessors(x.device), row_blocks),
        max_parts=2 * WORKSPACE // (n * (d + 1)),
    )
    force = torch.empty(splits, n, d, dtype=torch.float32, device=x.device)
    similarity = torch.empty(splits, n, dtype=torch.float32, device=x.device)
    fused_kernel[(row_blocks, splits)](
        *(x, y, norms_x, norms_y, weights, bandwidth, force, similarity),
        *(n, m, d, columns_per_split),
        SELF=x is y,
        PRECISION=precision_for(x),
        # Narrow rows use a narrower tile
        **{**tile.options(), "DEPTH": min(tile.depth, triton.next_power_of_2(d))},
    )
    if splits == 1:
        return force[0], similarity[0]
    return force.sum(dim=0), similarity.sum(dim=0)
