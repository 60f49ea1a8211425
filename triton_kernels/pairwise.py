"""Helpers of all pairwise kernels: loads of rows, squared norms, products of two blocks."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

# Triton's interpreter silently returns wrong bfloat16 products and sums, so it computes in float32
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

LOG2_E = tl.constexpr(1.4426950408889634)


def pad_rows(x: Tensor) -> Tensor:
    """Pads d with zeros to a multiple of 16.

    Such rows load as vectors. Loads of single numbers need too many registers for addresses.
    """
    return functional.pad(x, (0, -x.shape[1] % 16)) if x.shape[1] % 16 else x


@triton.jit
def as_operand(b):
    """Converts a block for `tl.dot`; see `INTERPRETED`."""
    return b.to(tl.float32) if INTERPRETED else b


@triton.jit
def load_rows(p, first, count, start, d, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Loads p[first : first + ROWS, start : start + DEPTH] of [count, d], with zeros outside."""
    rows = tl.arange(0, ROWS)
    depth = start + tl.arange(0, DEPTH)
    m_rows = (first + rows < count)[:, None] & (depth < d)[None, :]
    # The offset of the first row may exceed 2^31; offsets within a block fit in 32 bits
    p_rows = p + tl.cast(first, tl.int64) * d
    b = tl.load(p_rows + rows[:, None] * d + depth[None, :], mask=m_rows, other=0.0)
    return as_operand(b)


@triton.jit
def block_products(
    p_x,
    p_y,
    first_row,
    first_column,
    n,
    m,
    start,
    stop,
    d,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Returns x_i . y_j, summed over d in [start, stop), for a block of pairs [ROWS, COLUMNS]."""
    b_products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(start, stop, DEPTH):
        b_x = load_rows(p_x, first_row, n, k, d, ROWS, DEPTH)
        b_y = load_rows(p_y, first_column, m, k, d, COLUMNS, DEPTH)
        b_products = tl.dot(b_x, tl.trans(b_y), b_products, input_precision=PRECISION)
    return b_products


@triton.jit
def sq_distances(b_products, p_norms_x, p_norms_y, first_row, first_column, n, m):
    """Returns ||x_i - y_j||^2 = ||x_i||^2 + ||y_j||^2 - 2 x_i . y_j, at least 0."""
    rows = first_row + tl.arange(0, b_products.shape[0])
    columns = first_column + tl.arange(0, b_products.shape[1])
    b_norms_x = tl.load(p_norms_x + rows, mask=rows < n, other=0.0)
    b_norms_y = tl.load(p_norms_y + columns, mask=columns < m, other=0.0)
    return tl.maximum(b_norms_x[:, None] + b_norms_y[None, :] - 2.0 * b_products, 0.0)


@triton.jit
def pair_weights(b_sq, p_weights, p_bandwidth, first_row, first_column, m, SELF: tl.constexpr):
    """Returns w_j exp(-||x_i - y_j||^2 / h) for a block of pairs, 0 beyond the last column.

    With SELF the diagonal is 0 too. A particle's own weight cancels in its force, but the rounding
    errors of the two terms do not, and 2 / h can be large. `own_weights` returns the diagonal.
    """
    rows = first_row + tl.arange(0, b_sq.shape[0])
    columns = first_column + tl.arange(0, b_sq.shape[1])
    b_k = tl.exp2(b_sq * (-LOG2_E / tl.load(p_bandwidth)))
    if p_weights is not None:
        b_k *= tl.load(p_weights + columns, mask=columns < m, other=0.0)[None, :]
    m_pairs = (columns < m)[None, :]
    if SELF:
        m_pairs = m_pairs & (rows[:, None] != columns[None, :])
    return tl.where(m_pairs, b_k, 0.0)


@triton.jit
def own_weights(p_weights, first_row, n, SELF: tl.constexpr, ROWS: tl.constexpr):
    """Returns the diagonal that `pair_weights` omits from each row's similarity, [ROWS]."""
    b_own = tl.full([ROWS], 1.0 if SELF else 0.0, tl.float32)
    if SELF and p_weights is not None:
        rows = first_row + tl.arange(0, ROWS)
        b_own = tl.load(p_weights + rows, mask=rows < n, other=0.0)
    return b_own


@triton.jit
def sq_norms_kernel(p_x, p_norms, n, d, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    first = tl.program_id(0) * ROWS
    b_norms = tl.zeros([ROWS], tl.float32)
    for start in range(0, d, DEPTH):
        b_x = load_rows(p_x, first, n, start, d, ROWS, DEPTH).to(tl.float32)
        b_norms += tl.sum(b_x * b_x, 1)
    rows = first + tl.arange(0, ROWS)
    tl.store(p_norms + rows, b_norms, mask=rows < n)


def sq_norms(x: Tensor) -> Tensor:
    """Returns ||x_i||^2 in float32, [N], without copying `x` to float32."""
    n, d = x.shape
    norms = torch.empty(n, dtype=torch.float32, device=x.device)
    # Memory-bound with any tile
    sq_norms_kernel[(triton.cdiv(n, 16),)](
        *(x, norms, n, d), ROWS=16, DEPTH=128, num_warps=4, enable_fp_fusion=True
    )
    return norms
