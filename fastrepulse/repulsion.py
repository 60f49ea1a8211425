"""The repulsion: which embedding, how strong, when."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.bank import Bank
from fastrepulse.force import (
    denoiser_slope,
    mean_distance,
    part_duplicates,
    pull_back_forces,
    root_mean_square,
)
from fastrepulse.kernels import median_bandwidth, median_rbf_repulsion, rbf_repulsion
from fastrepulse.particles import Method, Particles, PromptForce, Push, check_window

MAX_MOVE = 0.4
"""How far one step's push may move a particle, in units of the noise that is left after it."""


@dataclass(frozen=True)
class Repulsion(Method):
    """How the particles of one prompt repel each other.

    At each noise level inside the window the score of particle i becomes s_i + strength * R_i with

        R_i = (H W h / m) J(z_i)^T F_i / S_i,    F_i = -grad_{phi_i} S_i

    where phi are the embeddings, J their Jacobian, S_i = sum_j exp(-||phi_i - phi_j||^2 / h) and m
    the median of ||phi_i - phi_j||^2 (A. Pondaven, "Repulsion in Stable Diffusion 2", MSc thesis,
    Imperial College London, 2023). The thesis has F_i / N, which fades as N grows in spaces of many
    dimensions. h F_i / S_i is twice the way from the weighted mean of the particles around i to i
    (the mean shift, reversed), so that one strength serves any number of particles; m takes out the
    embedding's scale, and H W makes it a gradient per position, so that one strength serves every
    size of latent.

    No push moves a particle further than `MAX_MOVE` times the noise that is left after the step:
    the model takes the push for noise and keeps what of it looks like a picture, so one that is
    larger than the noise that it expects would stay as noise in the picture. With few steps, which
    are long, the bound is what sets the push.

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
        bank: Particles of earlier runs, or pictures, to repel from too; a finished run is added.
        subset: Repel each particle from this many others, drawn anew at each step, in place of all:
            for N beyond 100,000.

    Raises:
        ValueError: If a value is out of its range or a name is unknown.
        TypeError: If the embedding is neither a name nor a function.
    """

    embedding: str | embeddings.Embed = "random_cnn"
    strength: float = 22.0
    on: Literal["noisy", "denoised"] = "denoised"
    window: tuple[float, float] = (math.inf, 4.0)
    bandwidth: float | Literal["median"] = "median"
    bank: Bank | None = None
    subset: int | None = None

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
        if self.bank is not None and not isinstance(self.bank, Bank):
            raise TypeError(f"bank must be a Bank or None, got {self.bank!r}")
        if self.subset is not None and not (isinstance(self.subset, int) and self.subset >= 2):
            raise ValueError(f"subset must be None or an int of at least 2, got {self.subset!r}")

    def acts_at(self, sigma: float) -> bool:
        """Says whether particles repel at a noise level."""
        return self.strength != 0 and self.window[0] >= sigma >= self.window[1]

    def push(self, particles: Particles) -> Push:
        """Returns what the particles of each prompt do to each other at one step.

        Outside the window, or without strength, they are measured only.
        """
        embedding = embeddings.build(self.embedding)
        acts = self.acts_at(particles.sigma)
        bank = self.bank if acts else None
        if bank is not None:
            bank.open(particles, self._name(), self.on, embedding)
        positions = math.prod(particles.denoised.shape[2:])

        def law(own: Tensor, prompt: int) -> tuple[Tensor, PromptForce]:
            earlier = None if bank is None else bank.recall(prompt, particles.step)
            direction, measured = self._force(own, earlier, particles)
            if bank is not None:
                bank.remember(prompt, particles.step, own)
            return direction * positions, measured

        seed = None if bank is None else bank.seed
        pull_back, prompts = pull_back_forces(
            embedding, self.on, particles, law, denoiser_slope, seed
        )
        if self.bank is not None and particles.step == particles.steps - 1:
            self.bank.close()
        return Push(self._shortened(pull_back, particles) if acts else None, prompts)

    def settings(self) -> dict[str, object]:
        """Returns the arguments as JSON can hold them."""
        window = [None if math.isinf(level) else level for level in self.window]
        return {
            "embedding": self._name(),
            "strength": float(self.strength),
            "on": self.on,
            "window": window,
            "bandwidth": self.bandwidth,
            "bank": None if self.bank is None else len(self.bank),
            "subset": self.subset,
        }

    def _name(self) -> str:
        if isinstance(self.embedding, str):
            return self.embedding
        return getattr(self.embedding, "__qualname__", type(self.embedding).__qualname__)

    def _force(
        self, own: Tensor, earlier: Tensor | None, particles: Particles
    ) -> tuple[Tensor, PromptForce]:
        """Returns (h / m) F_i / S_i [N, d] of embeddings among themselves and earlier ones."""
        everyone = own if earlier is None else torch.cat([own, earlier])
        everyone = part_duplicates(everyone, self.bandwidth, particles.seed)
        if earlier is None and self.subset is None and self.bandwidth == "median":
            force, similarity, h = median_rbf_repulsion(everyone)
            median = h * math.log(len(own))
            near = own
        else:
            others, share = self._draw(everyone, len(own), particles)
            median = median_bandwidth(others) * math.log(len(others))
            h = median / math.log(len(everyone))
            if self.bandwidth != "median":
                h = torch.full_like(median, self.bandwidth)
            force, similarity = rbf_repulsion(everyone[: len(own)], h.item(), others)
            # What the others drawn stand for; a particle's own share of the sum is 1 by itself
            drawn = share.to(own)
            scale = (len(everyone) - 1) / (len(others) - drawn)
            similarity = 1 + (similarity - drawn) * scale
            force = force * scale[:, None]
            near = others[: len(own)]
        direction = force / similarity[:, None] * (h / median)
        return direction, PromptForce(mean_distance(near), h.item(), root_mean_square(force))

    def _draw(self, everyone: Tensor, n: int, particles: Particles) -> tuple[Tensor, Tensor]:
        """Returns those to repel from, and for each of the first n whether it is among them."""
        if self.subset is None or self.subset >= len(everyone):
            return everyone, torch.ones(n)
        seed = (particles.seed * 1_000_003 + particles.step) % 2**63
        order = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(seed))
        drawn = torch.zeros(len(everyone))
        drawn[order[: self.subset]] = 1
        return everyone[order[: self.subset].to(everyone.device)], drawn[:n]

    def _shortened(
        self, pull_back: Callable[[slice], Tensor], particles: Particles
    ) -> Callable[[slice], Tensor]:
        """Returns strength * R_i as a function of a slice, shortened where it would move z too far.

        An Euler step moves z by sigma (sigma - next_sigma) times what is added to the score; the
        root mean square of that is at most MAX_MOVE * next_sigma.
        """
        sigma, following = particles.sigma, particles.next_sigma
        longest = MAX_MOVE * following / (sigma * (sigma - following))

        def change(part: slice) -> Tensor:
            pushed = self.strength * pull_back(part)
            length = pushed.flatten(1).square().mean(dim=1).sqrt()
            shorten = (longest / length.clamp_min(1e-12)).clamp_max(1)
            return pushed * shorten[:, None, None, None]

        return change
