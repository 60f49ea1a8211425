"""The base class of embeddings, and the registry of their names."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Embed: TypeAlias = Callable[[Tensor], Tensor]
"""A differentiable function from latents [N, C, H, W] to embeddings [N, d], each row alone."""


REFERENCE_SIDE = 16
"""Side of the latents to which default strengths and noise levels refer."""


class Embedding:
    """A map from latents [N, C, H, W] to embeddings [N, d], in which particles repel each other.

    A subclass defines `name` and `__call__`; its docstring tells what becomes different. Row i of
    the result depends on latent i alone. Settings, banks and evaluations identify an embedding by
    its name, so two embeddings that compute different things need different names.
    """

    name: str
    strength: float = 0.4
    """The default strength; much more leaves artefacts in the shipped model's images."""

    def __call__(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def prepare(self, seed: int, step: int, sigma: float) -> None:
        """Prepares for a step, before any latents are embedded; by default does nothing.

        Args:
            seed: Seeds random weights, together with `step`.
            step: The index of the step.
            sigma: Noise level of the latents to embed; 0 for the predicted clean latents.
        """

    def length_factor(self, height: int, width: int) -> float:
        """Returns the factor on the strength for latents of a size; 1 at 16x16.

        The push of an embedding of averages has as many dimensions at every size. Its root mean
        square over more latents is smaller, at the same length in each dimension.
        """
        return 1.0

    def split(self, embedded: Tensor) -> Sequence[Tensor]:
        """Splits embeddings [N, d] into parts with a kernel each; by default there is one part.

        The kernel is the sum over the parts, and F_i concatenates the forces of the parts.
        """
        return (embedded,)

    def vjp(self, latents: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Returns the embeddings [N, d] and the function from a force [N, d] to J^T F [N, C, H, W].

        J is the Jacobian at the latents. The function keeps the graph of the forward pass, can be
        called once and returns float32.
        """
        with torch.enable_grad():
            leaf = latents.detach().float().requires_grad_()
            embedded = self(leaf)

        def pull_back(force: Tensor) -> Tensor:
            return torch.autograd.grad(embedded, leaf, force.to(embedded.dtype))[0]

        return embedded.detach(), pull_back


_REGISTRY: dict[str, type[Embedding]] = {}


def register(cls: type[Embedding]) -> type[Embedding]:
    """Class decorator that makes an embedding available under its name."""
    _REGISTRY[cls.name] = cls
    return cls


def names() -> tuple[str, ...]:
    """Returns the names of all registered embeddings, sorted."""
    return tuple(sorted(_REGISTRY))


class FunctionEmbedding(Embedding):
    """A function from latents to embeddings, by default under its own name."""

    def __init__(self, function: Embed, name: str | None = None):
        self.function = function
        self.name = name or function_name(function)

    def __call__(self, latents: Tensor) -> Tensor:
        return self.function(latents)


def function_name(function: Embed) -> str:
    """Returns the name under which settings record a function or a callable object."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def name_of(embedding: "str | Embed") -> str:
    """Returns the name of an embedding, given as its name, an `Embedding` or a function."""
    return embedding if isinstance(embedding, str) else build(embedding).name


def build(embedding: "str | Embed") -> Embedding:
    """Returns a new embedding for a name, an `Embedding` as it is, or wraps a function as one.

    Raises:
        ValueError: If no embedding has that name.
        TypeError: If the argument is neither a name nor a function.
    """
    if isinstance(embedding, str):
        if embedding not in _REGISTRY:
            raise ValueError(f"embedding must be one of {', '.join(names())}, got {embedding!r}")
        return _REGISTRY[embedding]()
    if isinstance(embedding, Embedding):
        return embedding
    if not callable(embedding):
        raise TypeError(f"embedding must be a name or a function, got {embedding!r}")
    return FunctionEmbedding(embedding)
