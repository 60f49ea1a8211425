"""Layers that compute in another way for a while, with the weights that they have."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def swapped(modules: Sequence[nn.Module], kind: type[nn.Module]) -> Iterator[None]:
    """Makes modules of one class instances of a subclass without state of its own."""
    before = [type(module) for module in modules]
    for module in modules:
        module.__class__ = kind
    try:
        yield
    finally:
        for module, plain in zip(modules, before, strict=True):
            module.__class__ = plain
