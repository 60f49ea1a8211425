"""What an embedding is, and the registry from a name to an embedding."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Embed: TypeAlias = Callable[[Tensor], Tensor]
"""A differentiable function from latents [N, C, H, W] to embeddings [N, d], row by row."""


class Embedding:
    """Where particles are compared: a map from latents [N, C, H, W] to embeddings [N, d].

    A subclass has a `name`, says in its docstring what it makes different, and defines `__call__`.
    Row i of the result depends on latent i alone. Settings, banks and evaluations know an embedding
    by its name: what embeds in another way has another.
    """

    name: str
    strength: float = 0.4
    """Of a repulsion that is given none: about what leaves the shipped model's pictures clean."""

    def __call__(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def prepare(self, seed: int, step: int, sigma: float) -> None:
        """Is told, before a step embeds anything, what it may depend on; most ignore it.

        Args:
            seed: With `step`, from which what is random is drawn anew.
            step: The number of the step.
            sigma: The noise level of the latents that will be embedded: 0 for predicted clean ones.
        """

    def split(self, embedded: Tensor) -> Sequence[Tensor]:
        """Returns the columns of embeddings [N, d] that have a kernel of their own; most have one.

        The kernels of several are added up: F_i has their forces F_i^p side by side.
        """
        return (embedded,)

    def vjp(self, latents: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Returns the embeddings [N, d] and the function from a force [N, d] to J^T F [N, C, H, W].

        J is the Jacobian at the latents. The function holds what its backward pass needs, and
        serves once; what it returns is float32.
        """
        with torch.enable_grad():
            leaf = latents.detach().float().requires_grad_()
            embedded = self(leaf)

        def pull_back(force: Tensor) -> Tensor:
            return torch.autograd.grad(embedded, leaf, force.to(embedded.dtype))[0]

        return embedded.detach(), pull_back


def feature_map(embed: Embed, latents: Tensor) -> Tensor:
    """Returns what an embedding makes of latents before it pools over positions, [N, F, h, w].

    That is its method `feature_map`, or for a function of your own what it returns.

    Raises:
        ValueError: If these are no feature maps.
    """
    maps = getattr(embed, "feature_map", embed)(latents)
    if maps.ndim != 4:
        name = getattr(embed, "name", "a function")
        raise ValueError(f"{name} must make feature maps [N, F, h, w], got {list(maps.shape)}")
    return maps


_REGISTRY: dict[str, type[Embedding]] = {}


def register(cls: type[Embedding]) -> type[Embedding]:
    """Makes an embedding available by its name."""
    _REGISTRY[cls.name] = cls
    return cls


def names() -> tuple[str, ...]:
    """Returns the names of all embeddings, sorted."""
    return tuple(sorted(_REGISTRY))


class _Function(Embedding):
    """A user's own function as an embedding."""

    def __init__(self, function: Embed):
        self.function = function
        self.name = function_name(function)

    def __call__(self, latents: Tensor) -> Tensor:
        return self.function(latents)


def function_name(function: Embed) -> str:
    """Returns the name of a function or a callable object as settings say it."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def name_of(embedding: "str | Embed") -> str:
    """Returns the name of an embedding that is given by its name, or as an object or function."""
    return embedding if isinstance(embedding, str) else build(embedding).name


def build(embedding: "str | Embed") -> Embedding:
    """Returns the embedding of a name, or the one that a function is.

    Raises:
        ValueError: If there is no embedding of that name.
        TypeError: If it is neither a name nor a function.
    """
    if isinstance(embedding, str):
        if embedding not in _REGISTRY:
            raise ValueError(f"embedding must be one of {', '.join(names())}, got {embedding!r}")
        return _REGISTRY[embedding]()
    if isinstance(embedding, Embedding):
        return embedding
    if not callable(embedding):
        raise TypeError(f"embedding must be a name or a function, got {embedding!r}")
    return _Function(embedding)
