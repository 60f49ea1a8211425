"""The choice of the attention implementation of a UNet."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

ATTENTIONS = ("auto", "sdpa", "xformers", "math")


@contextmanager
def attention_of(unet: Any, attention: str) -> Iterator[None]:
    """Exchanges the attention of a UNet within the context; "auto" keeps diffusers' choice."""
    if attention == "auto":
        yield
        return
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    before = dict(unet.attn_processors)
    if attention == "xformers":
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
