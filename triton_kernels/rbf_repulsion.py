"""Force and similarity of an RBF kernel, in memory linear in the number of particles."""

import torch
from torch import Tensor

from fastrepulse.triton_kernels.fused import fused_tile, launch_fused
from fastrepulse.triton_kernels.pairwise import pad_rows, sq_norms
from fastrepulse.triton_kernels.panels import launch_panels


def rbf_repulsion_kernel(
    x: Tensor,  # [N, d]
    bandwidth: Tensor,  # []
    y: Tensor | None = None,  # [M, d]
    weights: Tensor | None = None,  # [M]
) -> tuple[Tensor, Tensor]:
    """Computes F_i = (2 / h) sum_j w_j k_ij (x_i - y_j) and S_i = sum_j w_j k_ij.

    k_ij = exp(-||x_i - y_j||^2 / h) (Liu & Wang 2016, arXiv:1608.04471). From float16 or bfloat16,
    w_j k_ij is rounded to that dtype before it multiplies y, as plain PyTorch would round it;
    norms, products, exponentials and sums are float32 throughout.

    Args:
        x: Embeddings [N, d], contiguous, float32, float16 or bfloat16, centred.
        bandwidth: h > 0, float32, on the device of `x`; the host never waits for its value.
        y: Embeddings [M, d] like `x`, with the same offset taken off; None for `x` itself.
        weights: w [M], float32; None for ones.

    Returns:
        The force [N, d] and the similarity [N], in which, with `y` None, a particle counts itself.
        Both are float32.
    """
    peak = None
    if weights is not None and x.dtype == torch.float16:
        # float16 has no room for weights as small as the gradient of a mean, nor for large ones
        peak = weights.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        weights = weights / peak
    d = x.shape[1]
    x = pad_rows(x)
    y = x if y is None else pad_rows(y)
    tile = fused_tile(x)
    # Triton launches on the current device, which need not be that of x
    with torch.cuda.device_of(x):
        norms_x = sq_norms(x)
        inputs = (x, y, norms_x, norms_x if y is x else sq_norms(y), weights, bandwidth)
        force, similarity = launch_fused(tile, *inputs) if tile else launch_panels(*inputs)
    if peak is not None:
        force *= peak
        similarity *= peak
    return force[:, :d].contiguous(), similarity
