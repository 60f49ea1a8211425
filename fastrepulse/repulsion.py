"""The repulsion: embed the particles, take the force between the embeddings, pull it back."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.finite import check_finite
from fastrepulse.kernels import median_bandwidth, median_rbf_repulsion, rbf_repulsion


@dataclass(frozen=True)
class Repulsion:
    """How the particles of one prompt repel each other.

    At each noise level inside the window the score of particle i becomes s_i + strength * R_i with

        R_i = H W J(z_i)^T F_i / S_i,    F_i = -grad_{phi_i} S_i,    S_i = sum_j k(phi_i, phi_j)

    where phi are the embeddings, J their Jacobian and k an RBF kernel (A. Pondaven, "Repulsion in
    Stable Diffusion 2", MSc thesis, Imperial College London, 2023). The thesis divides F_i by N, we
    by S_i: then R_i is the negative score of the particles' own density estimate and grows like
    log N, while F_i / N fades as N grows in spaces of many dimensions and F_i alone grows faster in
    those of few. The factor H W makes it a gradient per position, so that one strength serves every
    size of latent. R_i does not depend on the embedding's scale.

    Args:
        embedding: Where particles are compared: a name (`fastrepulse.embeddings.names()`) or a
            differentiable function from latents [N, C, H, W] to embeddings [N, d].
        strength: Weight of the repulsion against the score; 0 only measures, below 0 attracts. The
            default suits 16 particles and 25 steps; for others start from about
            8 (log 16 / log N) (steps / 25).
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
    strength: float = 8.0
    on: Literal["noisy", "denoised"] = "denoised"
    window: tuple[float, float] = (math.inf, 4.0)
    bandwidth: float | Literal["median"] = "median"

    def __post_init__(self) -> None:
        embeddings.build(self.embedding)
        if not math.isfinite(self.strength):
            raise ValueError(f"strength must be a finite number, got {self.strength}")
        if self.on not in ("noisy", "denoised"):
            raise ValueError(f"on must be 'noisy' or 'denoised', got {self.on!r}")
        check_window("window", self.window)
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


def check_window(name: str, window: tuple[float, float]) -> None:
    """Raises unless a window is two noise levels, the higher one first."""
    if not isinstance(window, (tuple, list)):
        raise TypeError(f"{name} must be two noise levels (from, to), got {window!r}")
    if len(window) != 2 or not window[0] > window[1] >= 0:
        raise ValueError(
            f"{name} must be two noise levels (from, to) with from > to >= 0, got {window}"
        )


@dataclass(frozen=True)
class PromptPush:
    """What the particles of one prompt do to each other at one step, in embedding space.

    Args:
        direction: H W F_i / S_i for every particle, times the denoiser's slope where it is the
            denoised latents that are embedded, [N, d]; pulled back by J^T it is R_i.
        mean_distance: Mean of ||phi_i - phi_j|| over pairs.
        bandwidth: h of the kernel.
        force_norm: Root mean square over particles of ||F_i||.
    """

    direction: Tensor
    mean_distance: float
    bandwidth: float
    force_norm: float


@dataclass(frozen=True)
class Push:
    """What all particles do to each other at one step, pulled back piece by piece.

    Args:
        by_prompt: The push within each prompt.
        pull_back: Takes a slice of the particles to their R_i, float32 [n, C, H, W].
    """

    by_prompt: list[PromptPush]
    pull_back: Callable[[slice], Tensor]


class Repeller:
    """Applies a `Repulsion` step by step, drawing what is random from one seed.

    Args:
        repulsion: What to apply.
        seed: From which an embedding draws what is random in it.
        num_particles: N >= 2 of each prompt; latents hold prompt after prompt.
        micro_batch_size: How many latents are embedded at once.
        device: Where the embeddings lie, whether or not the latents do.
    """

    def __init__(
        self,
        repulsion: Repulsion,
        seed: int,
        num_particles: int,
        micro_batch_size: int = 32,
        device: torch.device | str = "cpu",
    ):
        self.device = device
        self.repulsion = repulsion
        self.seed = seed
        self.num_particles = num_particles
        self.micro_batch_size = micro_batch_size
        self.embedding = embeddings.build(repulsion.embedding)

    def push(self, latents: Tensor, sigma: float, step: int) -> Push:
        """Returns what the particles of each prompt do to each other at one noise level.

        Args:
            latents: What is embedded: the noisy or the denoised latents [prompts * N, C, H, W].
            sigma: The noise level.
            step: The number of the step, from which an embedding draws what is random in it.

        Raises:
            ValueError: If the embedding does not return [n, d].
            FloatingPointError: If an embedding, or later what is pulled back, is not finite.
        """
        noisy = self.repulsion.on == "noisy"
        self.embedding.prepare(self.seed, step, sigma if noisy else 0.0)
        embedded = torch.cat([self._embed(part) for part in latents.split(self.micro_batch_size)])
        check_finite(embedded, "the embedding", step)
        by_prompt = [
            self._push_prompt(own, own_latents, sigma)
            for own, own_latents in zip(
                embedded.split(self.num_particles), latents.split(self.num_particles), strict=True
            )
        ]
        direction = torch.cat([prompt.direction for prompt in by_prompt])

        def pull_back(part: slice) -> Tensor:
            change = self.embedding.pull_back(latents[part].to(self.device), direction[part])
            check_finite(change, "the repulsion", step, part.start)
            return change

        return Push(by_prompt, pull_back)

    def _embed(self, latents: Tensor) -> Tensor:
        embedded = self.embedding(latents.to(self.device).float())
        if embedded.ndim != 2 or len(embedded) != len(latents):
            raise ValueError(
                f"the embedding of {len(latents)} latents must be [{len(latents)}, d], "
                f"got {tuple(embedded.shape)}"
            )
        return embedded.detach()

    def _push_prompt(self, embedded: Tensor, latents: Tensor, sigma: float) -> PromptPush:
        bandwidth = self.repulsion.bandwidth
        apart = part_duplicates(embedded, bandwidth, self.seed)
        if bandwidth == "median":
            force, similarity, median = median_rbf_repulsion(apart)
            bandwidth = median.item()
        else:
            force, similarity = rbf_repulsion(apart, bandwidth)
        slope = denoiser_slope(latents, sigma) if self.repulsion.on == "denoised" else 1.0
        return PromptPush(
            direction=force / similarity[:, None] * (slope * latents[0, 0].numel()),
            mean_distance=mean_distance(embedded),
            bandwidth=bandwidth,
            force_norm=force.square().sum(dim=1).mean().sqrt().item(),
        )


def denoiser_slope(denoised: Tensor, sigma: float) -> float:
    """Returns the slope v / (v + sigma^2) of the optimal denoiser of Gaussian data of variance v.

    v is the variance of the particles' own predictions, so that a prompt whose pictures are alike
    is pushed less far than one that has room; at least 1e-3, so that exact duplicates can part.
    """
    variance = max(denoised.var(dim=0).float().mean().item(), 1e-3)
    return variance / (variance + sigma**2)


def mean_distance(embedded: Tensor, rows: int = 1024) -> float:
    """Returns the mean of ||phi_i - phi_j|| over i != j, with memory of `rows` x N at a time."""
    if len(embedded) <= rows:
        return torch.pdist(embedded).mean().item()
    total = sum(torch.cdist(part, embedded).sum().item() for part in embedded.split(rows))
    return total / (len(embedded) * (len(embedded) - 1))


def part_duplicates(embedded: Tensor, bandwidth: float | Literal["median"], seed: int) -> Tensor:
    """Moves embeddings that coincide exactly apart, by a tenth of the kernel's width.

    The force between exact duplicates is zero, so they would stay together for ever. The direction
    is drawn from the seed; embeddings that are unlike all others are left alone.
    """
    _, group, sizes = torch.unique(embedded, dim=0, return_inverse=True, return_counts=True)
    duplicate = sizes[group] > 1
    if not duplicate.any():
        return embedded
    h = median_bandwidth(embedded).item() if bandwidth == "median" else bandwidth
    generator = torch.Generator().manual_seed(seed % 2**63)
    direction = torch.randn(embedded.shape, generator=generator).to(embedded)
    nudge = direction * (0.1 * math.sqrt(h / embedded.shape[1]))
    return torch.where(duplicate[:, None], embedded + nudge, embedded)
