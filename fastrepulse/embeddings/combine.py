"""Products and sums of kernels: several embeddings concatenated."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastrepulse.embeddings.base import Embed, Embedding, build


class Product(Embedding):
    """Scaled embeddings, concatenated: particles repel if all parts are similar.

    exp(-||a||^2 / u - ||b||^2 / v), a product of two kernels, is one kernel on the parts divided by
    the square roots of their bandwidths u and v.
    """

    def __init__(self, parts: Sequence[Embedding], scales: Sequence[float]):
        self.parts = parts
        self.scales = scales
        names = (f"{scale:.4g} {part.name}" for part, scale in zip(parts, scales, strict=True))
        self.name = f"product({', '.join(names)})"

    def prepare(self, seed: int, step: int, sigma: float) -> None:
        for part in self.parts:
            part.prepare(seed, step, sigma)

    def __call__(self, latents: Tensor) -> Tensor:
        rows = (scale * part(latents) for part, scale in zip(self.parts, self.scales, strict=True))
        return torch.cat(list(rows), dim=1)


def product(*parts: str | Embed, like: Tensor, weights: Sequence[float] | None = None) -> Product:
    """Returns an embedding whose kernel is the product of the kernels of its parts.

    Each part is divided by its median distance between the latents `like`, so that parts of equal
    weight count equally. These scales cannot come from the particles, because particles are
    embedded in micro-batches.

    Args:
        parts: Names or functions, as `Repulsion` takes them.
        like: Latents [M, C, H, W] of the model, M >= 2, such as `result.latents` of another call.
        weights: A factor above 0 for the distance in each part; by default 1.

    Raises:
        ValueError: If there are no parts, the number of weights differs, a weight is not above 0,
            `like` is not [M >= 2, C, H, W], or a part maps all of `like` to the same point.
    """
    if not parts:
        raise ValueError("parts must be at least one embedding, got none")
    if like.ndim != 4 or len(like) < 2:
        raise ValueError(f"like must be latents [M >= 2, C, H, W], got {list(like.shape)}")
    weights = [1.0] * len(parts) if weights is None else list(weights)
    if len(weights) != len(parts) or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ValueError(f"weights must be {len(parts)} numbers above 0, got {weights}")
    built = [build(part) for part in parts]
    distances = [typical_distance(part, like) for part in built]
    return Product(built, [w / r for w, r in zip(weights, distances, strict=True)])


class KernelSum(Embedding):
    """Concatenated embeddings with one kernel for each.

    The kernels are added, so particles repel if any of the parts are similar:

        R_i = sum_p J_p^T F_i^p

    Args:
        parts: Names or functions, as `Repulsion` takes them.

    Raises:
        ValueError: If there are no parts.
    """

    def __init__(self, *parts: str | Embed):
        if not parts:
            raise ValueError("parts must be at least one embedding, got none")
        self.parts = [build(part) for part in parts]
        self.name = f"sum({', '.join(part.name for part in self.parts)})"
        self._widths: list[int] = []

    def prepare(self, seed: int, step: int, sigma: float) -> None:
        for part in self.parts:
            part.prepare(seed, step, sigma)

    def __call__(self, latents: Tensor) -> Tensor:
        rows = [part(latents) for part in self.parts]
        self._widths = [row.shape[1] for row in rows]
        return torch.cat(rows, dim=1)

    def split(self, embedded: Tensor) -> Sequence[Tensor]:
        return embedded.split(self._widths, dim=1)


@torch.no_grad()
def typical_distance(embedding: Embedding, latents: Tensor) -> float:
    """Returns the median of ||phi_i - phi_j|| over pairs of latents [M, C, H, W]."""
    distance = torch.pdist(embedding(latents.float())).median().item()
    if not (math.isfinite(distance) and distance > 0):
        raise ValueError(
            f"{embedding.name} must tell the latents apart, their median distance is {distance}"
        )
    return distance
