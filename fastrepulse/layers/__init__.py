"""Layers of a UNet by the fastest kernels that serve, for a while."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from fastrepulse.layers.activations import fused_activations
from fastrepulse.layers.attention import attention_of
from fastrepulse.layers.convolutions import winograd_convolutions
from fastrepulse.layers.linears import onednn_linears

_turns: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()
"""One for each model: what is swapped in a model is swapped for all threads."""


@contextmanager
def accelerated(model: Any, attention: str | None = None) -> Iterator[None]:
    """Computes the layers of a UNet or an autoencoder by faster kernels for a while.

    Threads that want the same model take turns.

    Args:
        model: A diffusers model.
        attention: What computes its attention, one of `attention.ATTENTIONS`; None leaves it alone.

    Raises:
        ValueError: If that attention is not available here.
    """
    with ExitStack() as acceleration:
        acceleration.enter_context(_turns.setdefault(model, threading.RLock()))
        acceleration.enter_context(winograd_convolutions(model))
        acceleration.enter_context(fused_activations(model))
        if attention is not None:
            acceleration.enter_context(onednn_linears(model))
            acceleration.enter_context(attention_of(model, attention))
        yield
