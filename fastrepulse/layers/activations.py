"""Activations on the CPU, computed together with what goes before them by the native library."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, group_norm, silu

from fastrepulse import native
from fastrepulse.layers.swapped import swapped

STEP = 16
"""The native kernels take multiples of so many channels."""


@contextmanager
def fused_activations(model: Any) -> Iterator[None]:
    """Computes a model's residual blocks and gated units with fused activations for a while."""
    blocks: list[nn.Module] = []
    units: list[nn.Module] = []
    if native.serves("geglu_kernel", model.device, model.dtype):
        blocks = [module for module in model.modules() if _is_plain_block(module)]
        units = [module for module in model.modules() if _is_plain_unit(module)]
    with swapped(blocks, _ResnetBlock), swapped(units, _GEGLU):
        yield


def _is_plain_block(module: Any) -> bool:
    """Says whether it is a `ResnetBlock2D` of diffusers that `_ResnetBlock` computes."""
    return (
        type(module).__name__ == "ResnetBlock2D"
        and module.time_embedding_norm == "default"
        and module.upsample is module.downsample is None
        and isinstance(module.nonlinearity, nn.SiLU)
        and not module.skip_time_act
        and all(_is_plain_norm(norm) for norm in (module.norm1, module.norm2))
    )


def _is_plain_norm(norm: Any) -> bool:
    return type(norm) is nn.GroupNorm and norm.affine and norm.num_channels % STEP == 0


def _is_plain_unit(module: Any) -> bool:
    """Says whether it is a `GEGLU` of diffusers that `_GEGLU` computes."""
    return type(module).__name__ == "GEGLU" and module.proj.out_features % (2 * STEP) == 0


class _ResnetBlock(nn.Module):
    """conv(silu(norm(conv(silu(norm x)) + t))) + x, t from the time's embedding."""

    norm1: Any
    norm2: Any
    conv1: Any
    conv2: Any
    conv_shortcut: Any
    time_emb_proj: Any
    output_scale_factor: float

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        hidden = self.conv1(_norm_silu(x, None, self.norm1))
        shift = None
        if self.time_emb_proj is not None and time is not None:
            shift = self.time_emb_proj(silu(time))
        hidden = self.conv2(_norm_silu(hidden, shift, self.norm2))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        added = x + hidden
        return added if self.output_scale_factor == 1 else added / self.output_scale_factor


class _GEGLU(nn.Module):
    proj: Any

    def forward(self, x: Tensor) -> Tensor:
        projected = self.proj(x)
        return _plain_geglu(projected) if torch.is_grad_enabled() else geglu(projected)


def _plain_geglu(x: Tensor) -> Tensor:
    values, gates = x.chunk(2, dim=-1)
    return values * gelu(gates)


def _norm_silu(x: Tensor, shift: Tensor | None, norm: Any) -> Tensor:
    given = norm.num_groups, norm.weight, norm.bias, norm.eps
    if torch.is_grad_enabled():
        return _plain_norm_silu(x, shift, *given)
    # Out here, where torch.compile can let what computes the input lay it out so
    x = x.contiguous(memory_format=torch.channels_last)
    return group_norm_silu(x, shift, *given)


def _plain_norm_silu(
    x: Tensor, shift: Tensor | None, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    shifted = x if shift is None else x + shift[:, :, None, None]
    return silu(group_norm(shifted, groups, weight, bias, eps))


@torch.library.custom_op("fastrepulse::geglu", mutates_args=())
def geglu(x: Tensor) -> Tensor:  # [..., 2 d] -> [..., d]
    """Returns the first half of the last dimension times the GELU of the second; inference only.

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    width = x.shape[-1] // 2
    if native.serves("geglu_kernel", x.device, x.dtype) and width % STEP == 0:
        rows = torch.ops.fastrepulse.geglu_kernel(x.contiguous().view(-1, 2 * width))
        return rows.view(*x.shape[:-1], width)
    return _plain_geglu(x)


@geglu.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op("fastrepulse::group_norm_silu", mutates_args=())
def group_norm_silu(
    x: Tensor,  # [N, C, H, W]
    shift: Tensor | None,  # [N, C]
    groups: int,
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    eps: float,
) -> Tensor:  # [N, C, H, W]
    """Returns silu(group_norm(x + shift)), channels last; inference only.

    Source: Wu & He 2018, arXiv:1803.08494.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if native.serves("group_norm_silu_kernel", x.device, x.dtype) and x.shape[1] % STEP == 0:
        shift = None if shift is None else shift.contiguous()
        out = torch.ops.fastrepulse.group_norm_silu_kernel(
            x.permute(0, 2, 3, 1), shift, weight.contiguous(), bias.contiguous(), groups, eps
        )
        return out.permute(0, 3, 1, 2)
    plain = _plain_norm_silu(x, shift, groups, weight, bias, eps)
    return plain.contiguous(memory_format=torch.channels_last)


@group_norm_silu.register_fake
def _(
    x: Tensor, shift: Tensor | None, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
