"""The repulsion: embed the particles, take the force between the embeddings, pull it back."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.finite import check_finite
from fastrepulse.kernels import median_bandwidth, rbf_repulsion


@dataclass(frozen=True)
class Repulsion:
    """How the particles of one prompt repel each other.

    At each noise level inside the window the score of particle i becomes s_i + strength * R_i with

        R_i = H W J(z_i)^T F_i / S_i,    F_i = -grad_{phi_i} S_i,    S_i = sum_j k(phi_i, phi_j)

    where phi are the embeddings, J their Jacobian and k an RBF kernel (A. Pondaven, "Repulsion in
    Stable Diffusion 2", MSc thesis, Imperial College London, 2023). The thesis divides F_i by N, we
    by S_i: then R_i is the negative score of the particles' own density estimate, and one strength
    serves every N, while F_i / N fades as N grows in spaces of many dimensions and F_i alone grows
    in those of few. The factor H W makes it a gradient per position, so that one strength serves
    every size of latent. R_i does not depend on the embedding's scale.

    Args:
        embedding: Where particles are compared: a name (`fastrepulse.embeddings.names()`) or a
            differentiable function from latents [N, C, H, W] to embeddings [N, d].
        strength: Weight of the repulsion against the score; 0 only measures, below 0 attracts.
        on: What is embedded: the "noisy" latents z, or the "denoised" prediction of the clean ones.
            For the latter the denoiser's Jacobian is taken to be `denoiser_slope` times the
            identity: no backward pass through the model.
        window: Noise levels (from, to) inside which particles repel, from the higher one down.
        bandwidth: "median" for the median heuristic h = median ||phi_i - phi_j||^2 / log N, or h
            itself, above 0.

    Raises:
        ValueError: If a value is out of its range or a name is unknown.
        TypeError: If the embedding is neither a name nor a function.
    """

    embedding: str | embeddings.Embed = "random_cnn"
    strength: float = 6.0
    on: Literal["noisy", "denoised"] = "denoised"
    window: tuple[float, float] = (math.inf, 2.5)
    bandwidth: float | Literal["median"] = "median"

    def __post_init__(self) -> None:
        embeddings.build(self.embedding)
        if not math.isfinite(self.strength):
            raise ValueError(f"strength must be a finite number, got {self.strength}")
        if self.on not in ("noisy", "denoised"):
            raise ValueError(f"on must be 'noisy' or 'denoised', got {self.on!r}")
        if not isinstance(self.window, (tuple, list)):
            raise TypeError(f"window must be two noise levels (from, to), got {self.window!r}")
        if len(self.window) != 2 or not self.window[0] > self.window[1] >= 0:
            raise ValueError(
                f"window must be two noise levels (from, to) with from > to >= 0, got {self.window}"
            )
        if self.bandwidth != "median" and not (
            isinstance(self.bandwidth, (int, float))
            and math.isfinite(self.bandwidth)
            and self.bandwidth > 0
        ):
            raise ValueError(
                f"bandwidth must be 'median' or a positive number, got {self.bandwidth!r}"
            )

    def acts_at(self, sigma: float) -> bool:
        """Says whether particles repel at a noise level."""
        return self.strength != 0 and self.window[0] >= sigma >= self.window[1]

    def settings(self) -> dict[str, object]:
        """Returns the arguments as JSON can hold them."""
        name = self.embedding
        if not isinstance(name, str):
            name = getattr(name, "__qualname__", type(name).__qualname__)
        window = [None if math.isinf(level) else level for level in self.window]
        return {
            "embedding": name,
            "strength": float(self.strength),
            "on": self.on,
            "window": window,
            "bandwidth": self.bandwidth,
        }


@dataclass(frozen=True)
class Push:
    """What the particles of one prompt do to each other at one step.

    Args:
        change: R_i for every particle, float32 [N, C, H, W], before `strength`.
        embedded: The embeddings [N, d].
        bandwidth: h of the kernel.
        force_norm: Root mean square over particles of ||F_i||.
    """

    change: Tensor
    embedded: Tensor
    bandwidth: float
    force_norm: float


class Repeller:
    """Applies a `Repulsion` step by step, drawing what is random from one seed."""

    def __init__(self, repulsion: Repulsion, seed: int):
        self.repulsion = repulsion
        self.seed = seed
        self.embed = embeddings.build(repulsion.embedding)

    def push(self, z: Tensor, denoised: Tensor, sigma: float, step: int) -> Push:
        """Returns what N >= 2 particles of one prompt do to each other at one noise level.

        Args:
            z: Noisy latents [N, C, H, W], variance exploding.
            denoised: Predicted clean latents, [N, C, H, W].
            sigma: The noise level.
            step: The number of the step, from which an embedding draws what is random in it.

        Raises:
            ValueError: If the embedding does not return [N, d].
            FloatingPointError: If an embedding is not finite.
        """
        if isinstance(self.embed, embeddings.Embedding):
            self.embed.redraw(self.seed, step)
        latents, slope = z, 1.0
        if self.repulsion.on == "denoised":
            latents, slope = denoised, denoiser_slope(denoised, sigma)
        embedded, pull_back = embed_with_pull_back(self.embed, latents)
        check_finite(embedded, "the embedding", step)
        bandwidth = self.repulsion.bandwidth
        if bandwidth == "median":
            bandwidth = median_bandwidth(embedded).item()
        apart = part_duplicates(embedded, bandwidth, self.seed)
        force, similarity = rbf_repulsion(apart, bandwidth)
        return Push(
            change=pull_back(force / similarity[:, None]) * (slope * latents[0, 0].numel()),
            embedded=embedded,
            bandwidth=bandwidth,
            force_norm=force.square().sum(dim=1).mean().sqrt().item(),
        )


def denoiser_slope(denoised: Tensor, sigma: float) -> float:
    """Returns the slope v / (v + sigma^2) of the optimal denoiser of Gaussian data of variance v.

    v is the variance of the particles' own predictions, so that a prompt whose pictures are alike
    is pushed less far than one that has room; at least 1e-3, so that exact duplicates can part.
    """
    variance = max(denoised.float().var(dim=0).mean().item(), 1e-3)
    return variance / (variance + sigma**2)


def embed_with_pull_back(
    embed: embeddings.Embed, latents: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Embeds latents and returns with the embeddings the map F -> J^T F, latent by latent."""
    with torch.enable_grad():
        leaf = latents.detach().float().requires_grad_()
        embedded = embed(leaf)
    if embedded.ndim != 2 or len(embedded) != len(latents):
        raise ValueError(
            f"the embedding of {len(latents)} latents must be [{len(latents)}, d], "
            f"got {tuple(embedded.shape)}"
        )

    def pull_back(force: Tensor) -> Tensor:
        (change,) = torch.autograd.grad(embedded, leaf, force)
        return change

    return embedded.detach(), pull_back


def part_duplicates(embedded: Tensor, bandwidth: float, seed: int) -> Tensor:
    """Moves embeddings that coincide exactly apart, by a tenth of the kernel's width.

    The force between exact duplicates is zero, so they would stay together for ever. The direction
    is drawn from the seed; embeddings that are unlike all others are left alone.
    """
    _, group, sizes = torch.unique(embedded, dim=0, return_inverse=True, return_counts=True)
    duplicate = sizes[group] > 1
    if not duplicate.any():
        return embedded
    generator = torch.Generator().manual_seed(seed % 2**63)
    direction = torch.randn(embedded.shape, generator=generator).to(embedded)
    nudge = direction * (0.1 * math.sqrt(bandwidth / embedded.shape[1]))
    return torch.where(duplicate[:, None], embedded + nudge, embedded)
