"""Linear layers by the faster library of two."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastrepulse.layers.swapped import swapped


@contextmanager
def onednn_linears(unet: Any) -> Iterator[None]:
    """Computes a UNet's linear layers by oneDNN for a while, where that is the faster library.

    In float32 on a CPU torch hands them to MKL, which keeps to AVX2 on processors of another make
    than its own, and convolutions to oneDNN, which takes what there is.
    """
    linears: list[nn.Module] = []
    if unet.device.type == "cpu" and unet.dtype == torch.float32:
        linears = [module for module in unet.modules() if type(module) is nn.Linear]
    if not torch.backends.mkldnn.is_available():
        linears = []
    with swapped(linears, _Linear):
        yield


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or input.ndim != 3:
            return super().forward(input)
        return linear(input, self.weight, self.bias)


@torch.library.custom_op("fastrepulse::linear", mutates_args=())
def linear(
    x: Tensor,  # [B, tokens, K]
    weight: Tensor,  # [M, K]
    bias: Tensor | None,  # [M]
) -> Tensor:  # [B, tokens, M]
    """Returns x weight^T + bias as a convolution of one pixel; inference only.

    An operator of its own, so that torch.compile leaves the layout of its input and output alone.
    """
    channels_last = x.contiguous().unsqueeze(2).permute(0, 3, 1, 2)  # [B, K, tokens, 1]
    # By name, since conv2d leaves small batches to another library
    kernel = weight[:, :, None, None]
    y = torch.mkldnn_convolution(channels_last, kernel, bias, (0, 0), (1, 1), (1, 1), 1)
    return y.permute(0, 2, 3, 1).squeeze(2).contiguous()


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0])
