"""Layers of a UNet by the fastest kernels that serve, for a while."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    with _turns.setdefault(model, threading.RLock()), winograd_convolutions(model):
        if attention is None:
            yield
            return
        with onednn_linears(model), attention_of(model, attention):
            yield
