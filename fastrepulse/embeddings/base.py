"""What an embedding is, and the registry from a name to an embedding."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Embed: TypeAlias = Callable[[Tensor], Tensor]
"""A differentiable function from latents [N, C, H, W] to embeddings [N, d], row by row."""


class Embedding:
    """Where particles are compared: a map from latents [N, C, H, W] to embeddings [N, d].

    A subclass has a `name`, says in its docstring what it makes different, and defines `__call__`.
    Row i of the result depends on latent i alone.
    """

    name: str

    def __call__(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def redraw(self, seed: int, step: int) -> None:
        """Draws what is random in this embedding anew; most have nothing to draw."""


_REGISTRY: dict[str, type[Embedding]] = {}


def register(cls: type[Embedding]) -> type[Embedding]:
    """Makes an embedding available by its name."""
    _REGISTRY[cls.name] = cls
    return cls


def names() -> tuple[str, ...]:
    """Returns the names of all embeddings, sorted."""
    return tuple(sorted(_REGISTRY))


def build(embedding: "str | Embed") -> Embed:
    """Returns the embedding of a name, or the function itself.

    Raises:
        ValueError: If there is no embedding of that name.
        TypeError: If it is neither a name nor a function.
    """
    if isinstance(embedding, str):
        if embedding not in _REGISTRY:
            raise ValueError(f"embedding must be one of {', '.join(names())}, got {embedding!r}")
        return _REGISTRY[embedding]()
    if not callable(embedding):
        raise TypeError(f"embedding must be a name or a function, got {embedding!r}")
    return embedding
