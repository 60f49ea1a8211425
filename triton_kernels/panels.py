"""Force and similarity for wide rows, in two kernels.

One kernel writes the weights of a panel of pairs, the other multiplies them with y. A panel is as
large as the workspace allows, so memory stays bounded for any number of rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastrepulse.triton_kernels.pairwise import (
    as_operand,
    block_products,
    load_rows,
    own_weights,
    pair_weights,
    sq_distances,
)
from fastrepulse.triton_kernels.tiles import (
    WORKSPACE,
    multiprocessors,
    precision_for,
    split_work,
    tiles_for,
)

MAX_PANEL_COLUMNS = 4096
# A multiple of every tile's rows and columns, so that panels need no masks
PANEL_MULTIPLE = 256


@triton.jit
def panel_kernel(
    p_x,
    p_y,
    p_norms_x,
    p_norms_y,
    p_weights,
    p_bandwidth,
    p_panel,
    panel_row,
    panel_column,
    panel_rows,
    panel_columns,
    n,
    m,
    d,
    depth_per_split,
    SPLIT: tl.constexpr,
    SELF: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Writes a panel's weights or, with SPLIT, the products of each range of d."""
    row = tl.program_id(0) * ROWS
    column = tl.program_id(1) * COLUMNS
    split = tl.program_id(2)
    first_row = panel_row + row
    first_column = panel_column + column
    start = split * depth_per_split
    stop = tl.minimum(start + depth_per_split, d)
    b_pairs = block_products(
        p_x, p_y, first_row, first_column, n, m, start, stop, d, PRECISION, ROWS, COLUMNS, DEPTH
    )
    if not SPLIT:
        b_sq = sq_distances(b_pairs, p_norms_x, p_norms_y, first_row, first_column, n, m)
        b_pairs = pair_weights(b_sq, p_weights, p_bandwidth, first_row, first_column, m, SELF)
    rows = split * panel_rows + row + tl.arange(0, ROWS)
    columns = column + tl.arange(0, COLUMNS)
    # The workspace is small enough for 32-bit offsets
    tl.store(p_panel + rows[:, None] * panel_columns + columns[None, :], b_pairs)


@triton.jit
def multiply_kernel(
    p_x,
    p_y,
    p_norms_x,
    p_norms_y,
    p_weights,
    p_bandwidth,
    p_panel,
    p_force,
    p_similarity,
    panel_row,
    panel_column,
    panel_columns,
    n,
    m,
    d,
    columns_per_part,
    ADD: tl.constexpr,
    SPLIT: tl.constexpr,
    SELF: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Multiplies some of a panel's columns by a chunk of d.

    With ADD the result is added to the previous panels'. With SPLIT the panel holds products and is
    small, so every chunk recomputes the weights.
    """
    row = tl.program_id(0) * ROWS
    chunk = tl.program_id(1) * DEPTH
    first_row = panel_row + row
    part = tl.program_id(2)
    start = part * columns_per_part
    stop = tl.minimum(start + columns_per_part, tl.minimum(panel_columns, m - panel_column))
    rows = tl.arange(0, ROWS)
    b_total = tl.zeros([ROWS], tl.float32)
    b_sum = tl.zeros([ROWS, DEPTH], tl.float32)
    for column in range(start, stop, COLUMNS):
        first_column = panel_column + column
        columns = column + tl.arange(0, COLUMNS)
        b_k = tl.load(p_panel + (row + rows)[:, None] * panel_columns + columns[None, :])
        if SPLIT:
            b_sq = sq_distances(b_k, p_norms_x, p_norms_y, first_row, first_column, n, m)
            b_k = pair_weights(b_sq, p_weights, p_bandwidth, first_row, first_column, m, SELF)
            b_k = b_k.to(p_y.dtype.element_ty)
        # As in fused_kernel, both sums use the weights rounded for the product
        b_total += tl.sum(b_k.to(tl.float32), 1)
        b_y = load_rows(p_y, first_column, m, chunk, d, COLUMNS, DEPTH)
        b_sum = tl.dot(as_operand(b_k), b_y, b_sum, input_precision=PRECISION)
    b_x = load_rows(p_x, first_row, n, chunk, d, ROWS, DEPTH).to(tl.float32)
    b_force = 2.0 / tl.load(p_bandwidth) * (b_total[:, None] * b_x - b_sum)

    depth = chunk + tl.arange(0, DEPTH)
    m_rows = first_row + rows < n
    m_force = m_rows[:, None] & (depth < d)[None, :]
    first = tl.cast(part * n + first_row, tl.int64)
    p_rows = p_force + first * d + rows[:, None] * d + depth[None, :]
    if ADD:
        b_force += tl.load(p_rows, mask=m_force)
    tl.store(p_rows, b_force, mask=m_force)
    # Every chunk computes the row sums; the first one writes them
    if chunk == 0:
        p_totals = p_similarity + first + rows
        if ADD:
            b_total += tl.load(p_totals, mask=m_rows)
        elif part == 0:
            b_total += own_weights(p_weights, first_row, n, SELF, ROWS)
        tl.store(p_totals, b_total, mask=m_rows)


def launch_panels(
    x: Tensor,  # [N, d]
    y: Tensor,  # [M, d]
    norms_x: Tensor,  # [N]
    norms_y: Tensor,  # [M]
    weights: Tensor | None,  # [M]
    bandwidth: Tensor,  # []
) -> tuple[Tensor, Tensor]:
    """Returns force [N, d] and similarity [N] for any d."""
    (n, d), m = x.shape, len(y)
    tile = tiles_for(x)["panel"]
    panel_columns = round_up(min(m, MAX_PANEL_COLUMNS), PANEL_MULTIPLE)
    panel_rows = min(round_up(n, PANEL_MULTIPLE), WORKSPACE // panel_columns)
    panel_rows = panel_rows // PANEL_MULTIPLE * PANEL_MULTIPLE
    widest = min(m, panel_columns)
    # With few pairs, several programs keep the device busy: in the panel each takes a range of d,
    # in the product each takes some of a row's columns
    tiles = triton.cdiv(min(n, panel_rows), tile.rows) * triton.cdiv(widest, tile.columns)
    splits, depth_per_split = split_work(
        *(d, tile.depth),
        programs=triton.cdiv(multiprocessors(x.device), tiles),
        max_parts=WORKSPACE // (panel_rows * panel_columns),
    )
    multiply = tiles_for(x)["multiply"]
    chunks = triton.cdiv(min(n, panel_rows), multiply.rows) * triton.cdiv(d, multiply.depth)
    parts, columns_per_part = split_work(
        *(widest, multiply.columns),
        programs=triton.cdiv(multiprocessors(x.device), chunks),
        max_parts=2 * WORKSPACE // (n * (d + 1)),
    )

    force = torch.empty(parts, n, d, dtype=torch.float32, device=x.device)
    similarity = torch.empty(parts, n, dtype=torch.float32, device=x.device)
    panels = torch.empty(
        *(splits, panel_rows, panel_columns),
        dtype=x.dtype if splits == 1 else torch.float32,
        device=x.device,
    )
    inputs = (x, y, norms_x, norms_y, weights, bandwidth)
    settings = {"SPLIT": splits > 1, "SELF": x is y, "PRECISION": precision_for(x)}
    for row in range(0, n, panel_rows):
        rows = min(panel_rows, n - row)
        for column in range(0, m, panel_columns):
            columns = min(panel_columns, m - column)
            grid = (triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns), splits)
            position = (row, column, panel_rows, panel_columns)
            panel_kernel[grid](
                *(*inputs, panels, *position, n, m, d, depth_per_split),
                **settings,
                **tile.options(),
            )
            panel = panels[0] if splits == 1 else panels.sum(dim=0)
            grid = (triton.cdiv(rows, multiply.rows), triton.cdiv(d, multiply.depth), parts)
            multiply_kernel[grid](
                *(*inputs, panel, force, similarity),
                *(row, column, panel_columns, n, m, d, columns_per_part),
                ADD=column > 0,
                **settings,
                **multiply.options(),
            )
    if parts == 1:
        return force[0], similarity[0]
    return force.sum(dim=0), similarity.sum(dim=0)


def round_up(count: int, multiple: int) -> int:
    """Rounds a count up to a multiple."""
    return triton.cdiv(count, multiple) * multiple
