"""3x3 convolutions on the CPU by the native library."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastrepulse import native


@contextmanager
def winograd_convolutions(model: Any) -> Iterator[None]:
    """Computes a model's 3x3 convolutions by `conv3x3` within the context, where that is faster."""
    convolutions: list[nn.Module] = []
    if is_faster(model.device, model.dtype):
        convolutions = [module for module in model.modules() if _is_plain(module)]
    for module in convolutions:
        module.__class__ = _Conv3x3
    try:
        yield
    finally:
        for module in convolutions:
            module.__class__ = nn.Conv2d


def is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `conv3x3` is faster than torch's convolution on a device and in a dtype."""
    return native.serves("conv3x3_kernel", device, dtype) and native.cpu_capability() != "baseline"


def pays(shape: torch.Size, out_channels: int) -> bool:
    """Whether `conv3x3` is faster for inputs [N, C, H, W].

    The estimate counts multiplications per pair of channels. At least eight tiles are multiplied,
    and transforming a filter takes as long as 170 multiplications.
    """
    batch, channels, height, width = shape
    tiles = batch * -(-height // 4) * -(-width // 4)
    fewer = 36 * max(tiles, 8) + 170 < 0.8 * 9 * batch * height * width
    return fewer and channels + out_channels >= 64 and channels % 16 == out_channels % 16 == 0


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and type(module.weight) is nn.Parameter  # not quantised
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
        # Outside the operator, so that torch.compile can fuse the change of layout
        channels_last = input.contiguous(memory_format=torch.channels_last)
        return conv3x3(channels_last, self.weight, self.bias)


@torch.library.custom_op("fastrepulse::conv3x3", mutates_args=())
def conv3x3(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [O, C, 3, 3]
    bias: Tensor | None,  # [O]
) -> Tensor:  # [N, O, H, W]
    """Returns the convolution with zero padding of one pixel, channels last; inference only.

    The native library uses Winograd's F(4x4, 3x3) (Lavin & Gray 2015, arXiv:1509.09308). Torch
    computes inputs that the native library does not support.
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
