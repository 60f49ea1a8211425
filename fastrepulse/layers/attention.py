"""Attention on the CPU by the native library, as a processor for diffusers' models."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrepulse import native

ATTENTIONS = ("auto", "sdpa", "xformers", "math")


@contextmanager
def attention_of(unet: Any, attention: str) -> Iterator[None]:
    """Chooses what computes a UNet's attention for a while: one of `ATTENTIONS`.

    Raises:
        ValueError: If it is not available here.
    """
    if attention == "auto" and not is_faster(unet.device, unet.dtype):
        yield
        return
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    before = dict(unet.attn_processors)
    if attention == "auto":
        chosen = {
            name: NativeAttention(plain) if type(plain) is AttnProcessor2_0 else plain
            for name, plain in before.items()
        }
        unet.set_attn_processor(chosen)
    elif attention == "xformers":
        if find_spec("xformers") is None:
            raise ValueError("attention must be available, got 'xformers', which is not installed")
        if unet.device.type != "cuda":
            raise ValueError(f"attention must be available, got 'xformers' on {unet.device}")
        unet.enable_xformers_memory_efficient_attention()
    else:
        unet.set_attn_processor(AttnProcessor() if attention == "math" else AttnProcessor2_0())
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Says whether `attention` is faster than torch's own on a device and in a dtype.

    On AVX2 the two are level, and what else there is torch serves better.
    """
    return native.serves("attention_kernel", device, dtype) and native.cpu_capability() == "avx512"


@torch.library.custom_op("fastrepulse::attention", mutates_args=())
def attention(
    q: Tensor,  # [B, heads, N, d]
    k: Tensor,  # [B, heads, M, d]
    v: Tensor,  # [B, heads, M, d]
    scale: float,
) -> Tensor:  # [B, heads, N, d]
    """Returns softmax(scale q k^T) v, a view of [B, N, heads * d]; inference only.

    It is torch's own where the native library does not serve.
    """
    if native.serves("attention_kernel", q.device, q.dtype) and scale >= 0:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        return torch.ops.fastrepulse.attention_kernel(q, k, v, scale).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim).transpose(1, 2)


class NativeAttention:
    """A diffusers attention processor that calls `attention`.

    Args:
        other: The processor that it stands in for, which keeps what has masks, gradients, norms or
            a residual connection of its own.
    """

    def __init__(self, other: Any):
        self.other = other

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,  # [B, N, width]
        encoder_hidden_states: Tensor | None = None,  # [B, M, width of the text]
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:  # [B, N, width]
        norms = attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k
        if (
            torch.is_grad_enabled()
            or hidden_states.ndim != 3
            or attention_mask is not None
            or any(norm is not None for norm in norms)
            or attn.residual_connection
            or attn.rescale_output_factor != 1
        ):
            return self.other(
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
            )
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projections = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projections)
        out = attention(q, k, v, q.shape[-1] ** -0.5)
        dense, dropout = attn.to_out
        return dropout(dense(out.transpose(1, 2).flatten(2)))
