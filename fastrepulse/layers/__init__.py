"""Faster layers for a UNet or an autoencoder, within a context."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from fastrepulse.layers.attention import attention_of
from fastrepulse.layers.convolutions import winograd_convolutions

_turns: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()
"""A lock for each model, since exchanged layers are exchanged for all threads."""


@contextmanager
def accelerated(model: Any, attention: str | None = None) -> Iterator[None]:
    """Exchanges layers of a UNet or an autoencoder for faster ones within the context.

    Threads that use the same model take turns. `attention` is one of `attention.ATTENTIONS`, or
    None to change nothing; ValueError is raised if it is not available.
    """
    with ExitStack() as acceleration:
        acceleration.enter_context(_turns.setdefault(model, threading.RLock()))
        acceleration.enter_context(winograd_convolutions(model))
        if attention is not None:
            acceleration.enter_context(attention_of(model, attention))
        yield
