"""Tolerances of the test suite, as (relative, absolute)."""

import torch

AGAINST_FLOAT64 = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (2e-5, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}
"""An operation against float64 on the same inputs, by dtype."""

SAME_COMPUTATION = (1e-4, 1e-4)
"""float32 results of the same arithmetic in another order, e.g. with other batch sizes."""

TIMES_EAGER = 2.0
"""Largest half-precision error of a fused kernel, relative to the error of plain PyTorch."""

TIMES_DIRECT = 4.0
"""Largest rounding error of a Winograd convolution, relative to the error of PyTorch's."""
