"""Every tolerance of the test suite, in one table: (relative, absolute)."""

import torch

AGAINST_FLOAT64 = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (2e-5, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}
"""An op in some dtype against the same inputs in float64."""

SAME_COMPUTATION = (1e-4, 1e-4)
"""float32 results of the same arithmetic in another order: batch sizes, other pipelines."""

TIMES_EAGER = 2.0
"""The error that a fused kernel may have in half precision, over that of plain PyTorch."""

TIMES_DIRECT = 4.0
"""The rounding error of a convolution by Winograd's filtering, over that of PyTorch's own."""
