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

    k_ij = exp(-||x_i - y_j||^2 / h) (Liu & Wang 2016, arXiv:1608.04471). With float16 or bfloat16
    inputs, w_j k_ij is rounded to that dtype before the product with y, as in plain PyTorch. Norms,
    products, exponentials and sums are float32.

    Args:
        x: Embeddings [N, d], contiguous, float32, float16 or bfloat16, centred.
        bandwidth: h > 0, float32, on the device of `x`. The host does not wait for the device.
        y: Embeddings [M, d] like `x`, centred by the same offset; None for `x` itself.
        weights: w [M], float32; None for ones.

    Returns:
        The force [N, d] and the similarity [N], both float32. Without `y`, the similarity includes
        each particle's own weight.
    """
    peak = None
    if weights is not None and x.dtype == torch.float16:
        # Weights can be outside float16's range: the gradient of a mean is tiny
        peak = weights.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        weights = weights / peak
    d = x.shape[1]
    x = pad_rows(x)
    y = x if y is None else pad_rows(y)
    tile = fused_tile(x)
    # Triton launches on the current device, which may differ from the device of x
    with torch.cuda.device_of(x):
        norms_x = sq_norms(x)
        inputs = (x, y, norms_x, norms_x if y is x else sq_norms(y), weights, bandwidth)
        force, similarity = launch_fused(tile, *inputs) if tile else launch_panels(*inputs)
    if peak is not None:
        force *= peak
        similarity *= peak
    return force[:, :d].contiguous(), similarity
