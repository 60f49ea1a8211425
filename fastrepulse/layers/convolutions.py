"""Convolutions of 3x3 pixels on the CPU by the native library."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastrepulse import native
from fastrepulse.layers.swapped import swapped


@contextmanager
def winograd_convolutions(model: Any) -> Iterator[None]:
    """Computes a model's 3x3 convolutions by `conv3x3` for a while, where that is faster."""
    convolutions = []
    if is_faster(model.device, model.dtype):
        convolutions = [module for module in model.modules() if _is_plain(module)]
    with swapped(convolutions, _Conv3x3):
        yield


def is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Says whether `conv3x3` is faster than torch's own on a device and in a dtype."""
    return native.serves("conv3x3_kernel", device, dtype) and native.cpu_capability() != "baseline"


def pays(shape: torch.Size, out_channels: int) -> bool:
    """Says whether it is faster for inputs [N, C, H, W].

    Reckoned in multiplications for each pair of channels: eight tiles at least are multiplied, and
    transforming a filter takes as long as 170 multiplications.
    """
    batch, channels, height, width = shape
    tiles = batch * -(-height // 4) * -(-width // 4)
    fewer = 36 * max(tiles, 8) + 170 < 0.8 * 9 * batch * height * width
    return fewer and channels + out_channels >= 64 and channels % 16 == out_channels % 16 == 0


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.padding in ((1, 1), "same")
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
    )


class _Conv3x3(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not pays(input.shape, self.out_channels):
            return super().forward(input)
        # Out here, where torch.compile can let what computes the input lay it out so
        channels_last = input.contiguous(memory_format=torch.channels_last)
        return conv3x3(channels_last, self.weight, self.bias)


@torch.library.custom_op("fastrepulse::conv3x3", mutates_args=())
def conv3x3(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [O, C, 3, 3]
    bias: Tensor | None,  # [O]
) -> Tensor:  # [N, O, H, W]
    """Returns the convolution with a margin of one zero, channels last; inference only.

    It is by Winograd's F(4x4, 3x3) (Lavin & Gray 2015, arXiv:1509.09308) where the native library
    serves, and elsewhere torch's own.
    """
    x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
    if (
        native.serves("conv3x3_kernel", x.device, x.dtype)
        and x.shape[1] % 16 == weight.shape[0] % 16 == 0
    ):
        pixels, filters = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
        bias = None if bias is None else bias.contiguous()
        return torch.ops.fastrepulse.conv3x3_kernel(pixels, filters, bias).permute(0, 3, 1, 2)
    return torch.conv2d(x, weight, bias, padding=1).contiguous(memory_format=torch.channels_last)


@conv3x3.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, weight.shape[0]).permute(0, 3, 1, 2)
