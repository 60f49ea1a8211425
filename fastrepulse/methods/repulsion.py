"""The repulsion: which embedding, how strong, when."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.checks import (
    check_number,
    check_positive,
    check_window,
    in_window,
    plain_window,
)
from fastrepulse.kernels import (
    median_bandwidth,
    median_rbf_repulsion,
    rbf_repulsion,
    shared_median_bandwidth,
)
from fastrepulse.methods.bank import Bank
from fastrepulse.methods.base import Method, Particles, PromptForce, Push, Share
from fastrepulse.methods.force import (
    check_settings,
    mean_distance,
    part_duplicates,
    pull_back_forces,
    root_mean_square,
    rows_of_own,
)
from fastrepulse.methods.lengths import away_from_mean, bounded
from fastrepulse.noise import step_generator

DEFAULT_EMBEDDING = "thirds"


@dataclass(frozen=True)
class Repulsion(Method):
    """How the particles of one prompt repel each other.

    At each noise level inside the window the predicted noise of particle i becomes

        eps_i - strength * r_i - spread * d_i,    r_i = R_i / rms(R_i),    R_i = J(z_i)^T F_i

    where phi are the embeddings, J their Jacobian and F_i = -grad_{phi_i} sum_j k(phi_i, phi_j) the
    force of an RBF kernel k = exp(-||phi_i - phi_j||^2 / h) (A. Pondaven, "Repulsion in Stable
    Diffusion 2", MSc thesis, Imperial College London, 2023). The thesis adds R_i / N to the score
    as it comes, and its size then depends on the embedding, on N, on the size of the latents and on
    the noise level. Here the direction is the force's and the length is given: a strength of 1 is
    a push as long as the noise that the model predicts, which has a root mean square of 1.

    d_i is the direction in which the particle differs from the mean of all in the noisy latents,
    (z_i - mean z) / rms, which is what an RBF repulsion of the latents themselves comes to in many
    dimensions, where all are about as far from each other. This push acts at all noise levels and
    makes details differ that the embedding does not see; it leaves traces, and is off by default.

    Guidance pauses while the particles choose what they become. It sharpens what a prompt means
    towards the usual, and so makes near-copies of particles that were pushed apart; at the highest
    noise levels it still decides on the subject, and below the pause it draws the details clean
    (after the limited interval of Kynkäänniemi et al. 2024, arXiv:2404.07724). A step without
    guidance takes half the time. With few steps the first is at a noise level inside the pause:
    there the pause waits for the second step, and so does the push if that is inside its window.

    When the push has done its work the particles go back up once: at the lower noise level of
    `restart` new noise takes them to the higher one, and the steps between are taken again without
    a push. The model draws anew what the push left of itself (Restart sampling, Xu et al. 2023,
    arXiv:2306.14878); what the particles became is decided above, and stays.

    No push moves a particle further than `MAX_MOVE` times the noise that is left after the step:
    the model takes the push for noise and keeps what of it looks like a picture, so one that is
    larger than the noise that it expects would stay as noise in the picture. With few steps, which
    are long, this bound is what sets the length.

    Args:
        embedding: Where particles are compared: a name (`fastrepulse.embeddings.names()`) or a
            differentiable function from latents [N, C, H, W] to embeddings [N, d].
        strength: Length of the push over that of the predicted noise; 0 only measures, below 0
            attracts. By default the embedding's own: 0.4 for most, more for those whose push
            is of high frequency, which the model cleans away.
        on: What is embedded: the "noisy" latents z, or the "denoised" prediction of the clean ones.
            For the latter the denoiser's Jacobian is taken to be a multiple of the identity: no
            backward pass through the model.
        window: Noise levels (from, to) inside which particles repel, from the higher one down; from
            infinity on in the first step too.
        pause: Noise levels (from, to) inside which there is no guidance, if `strength` is above 0;
            None for guidance throughout; from infinity on the first step has none either. It is
            `sample`'s to obey: the integrations, which do not run the model, leave guidance to the
            pipeline.
        restart: Noise levels (from, to): at the latter particles go back to the former, once, if
            `strength` is above 0 and the window is over by then; None for the straight way down.
            `sample`'s to obey, as the pause.
        spread: Length of the push in the noisy latents, in the same unit, at least 0; there is none
            unless `strength` is above 0.
        bandwidth: "median" for the median heuristic h = median ||phi_i - phi_j||^2 / log N, or h
            itself, above 0.
        bank: Particles of earlier runs, or pictures, to repel from too; a finished run is added.
        subset: Repel each particle from this many others, drawn anew at each step, in place of all:
            for N beyond 100,000.

    Raises:
        ValueError: If a value is out of its range or a name is unknown.
        TypeError: If the embedding is neither a name nor a function.
    """

    embedding: str | embeddings.Embed = DEFAULT_EMBEDDING
    strength: float = None  # type: ignore[assignment]  # set below
    on: Literal["noisy", "denoised"] = "denoised"
    window: tuple[float, float] = (9.0, 4.0)
    pause: tuple[float, float] | None = (9.0, 0.3)
    restart: tuple[float, float] | None = (3.0, 1.0)
    spread: float = 0.0
    bandwidth: float | Literal["median"] = "median"
    bank: Bank | None = None
    subset: int | None = None
    joint = True

    def __post_init__(self) -> None:
        if self.strength is None:
            object.__setattr__(self, "strength", embeddings.build(self.embedding).strength)
        check_settings(self.embedding, self.strength, self.on, self.window)
        if self.pause is not None:
            check_window("pause", self.pause)
        if self.restart is not None:
            check_window("restart", self.restart)
        check_number("spread", self.spread)
        if self.spread < 0:
            raise ValueError(f"spread must be at least 0, got {self.spread}")
        if not (isinstance(self.bandwidth, str) and self.bandwidth == "median"):
            check_positive("bandwidth", self.bandwidth, "'median' or ")
        if self.bank is not None and not isinstance(self.bank, Bank):
            raise TypeError(f"bank must be a Bank or None, got {self.bank!r}")
        if self.subset is not None and not (isinstance(self.subset, int) and self.subset >= 2):
            raise ValueError(f"subset must be None or an int of at least 2, got {self.subset!r}")

    @property
    def spreads(self) -> bool:
        """Whether particles move away from their mean, at all noise levels."""
        return self.strength > 0 and self.spread > 0

    def acts_at(self, sigma: float) -> bool:
        """Says whether the embeddings repel at a noise level."""
        return self.strength != 0 and in_window(sigma, self.window)

    def watches(self, sigma: float) -> bool:
        """Says whether it has to see a step: where it acts, and with a bank the last one too."""
        return self.acts_at(sigma) or self.spreads or self.bank is not None

    def guides(self, sigma: float, first: bool) -> bool:
        """Says whether there is guidance at a noise level."""
        if self.strength <= 0 or self.pause is None or (first and math.isfinite(self.pause[0])):
            return True
        return not in_window(sigma, self.pause)

    def _waits(self, particles: Particles) -> bool:
        """Says whether a step is left to guidance, to decide on the subject."""
        begins_later = self.pause is not None and math.isfinite(self.pause[0] + self.window[0])
        return particles.first and begins_later and particles.next_sigma >= self.window[1]

    def restarts(self) -> tuple[float, float] | None:
        """Returns the noise levels between which particles go down twice."""
        over = self.restart is not None and self.window[1] >= self.restart[0]
        return self.restart if over and self.strength > 0 else None

    @property
    def acts_on_one(self) -> bool:
        return self.bank is not None

    def push(self, particles: Particles) -> Push:
        """Returns what the particles of each prompt do to each other at one step.

        Outside the window, or without strength, they are measured only, if somebody looks.
        """
        embedding = embeddings.build(self.embedding)
        acts = self.acts_at(particles.sigma) and not self._waits(particles)
        # Without strength too: what is only measured can be repelled from later
        bank = self.bank if in_window(particles.sigma, self.window) else None
        if bank is not None:
            bank.open(particles, embedding.name, self.on, embedding)

        def law(own: Tensor, prompt: int) -> tuple[Tensor, PromptForce]:
            earlier = None if bank is None else bank.recall(prompt, particles.step, own)
            if bank is not None:
                bank.remember(prompt, particles.step, own)
            everyone, weights = own, None
            if earlier is not None:
                everyone = torch.cat([own, earlier[0]])
                weights = torch.cat([own.new_ones(len(own)), earlier[1]])
            if len(everyone) == 1:
                no_pairs = own.new_full((), math.nan)
                return torch.zeros_like(own), PromptForce(no_pairs, no_pairs, own.new_zeros(()))
            rows = rows_of_own(particles, len(everyone))
            kernels = [
                self._force(part, len(own), weights, rows, particles)
                for part in embedding.split(everyone)
            ]
            force = torch.cat([force for force, _ in kernels], dim=1)
            bandwidth = torch.stack([h for _, h in kernels]).mean()
            if rows is None:
                distance = mean_distance(own[: self.subset])
                return force, PromptForce(distance, bandwidth, root_mean_square(force))
            measured = torch.stack([mean_distance(own, own=rows), force.square().sum() / len(own)])
            distance, square = particles.share.total(measured)
            together = torch.zeros_like(own)
            together[rows] = force
            return together, PromptForce(distance, bandwidth, square.sqrt())

        seed = None if bank is None else bank.seed
        pushes: list[tuple[float, Callable[[slice], Tensor]]] = []
        prompts: list[PromptForce] = []
        if acts or particles.measured or bank is not None:
            pull_back, prompts = pull_back_forces(embedding, self.on, particles, law, seed, acts)
            pushes = [(self.strength, pull_back)] if acts else []
        if self.bank is not None and particles.last:
            self.bank.close()
        if self.spreads:
            pushes.append((self.spread, away_from_mean(particles)))
        return Push(bounded(pushes, particles) if pushes else None, prompts)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return ({}, {}) if self.bank is None else self.bank.state()

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        if self.bank is not None:
            self.bank.restore(tensors, record)

    def settings(self) -> dict[str, object]:
        """Returns the arguments as JSON can hold them."""
        return {
            "embedding": embeddings.name_of(self.embedding),
            "strength": float(self.strength),
            "pause": None if self.pause is None else plain_window(self.pause),
            "restart": None if self.restart is None else plain_window(self.restart),
            "spread": float(self.spread),
            "on": self.on,
            "window": plain_window(self.window),
            "bandwidth": self.bandwidth,
            "bank": None if self.bank is None else len(self.bank),
            "subset": self.subset,
        }

    def _force(
        self,
        everyone: Tensor,
        n: int,
        weights: Tensor | None,
        rows: slice | None,
        particles: Particles,
    ) -> tuple[Tensor, Tensor]:
        """Returns F_i of the first n embeddings among everyone's, [n, d], and the bandwidth.

        With rows it is F_i of these alone, and all processes find the bandwidth together.
        """
        known = None if self.bandwidth == "median" else self.bandwidth
        apart = part_duplicates(everyone, particles.seed, known)
        drawn = self._draw(apart, particles)
        others = apart if drawn is None else apart[drawn]
        if drawn is None and len(apart) == n and self.bandwidth == "median" and rows is None:
            force, _, h = median_rbf_repulsion(apart)
            return force, h
        bandwidth = self._bandwidth(others, len(apart), None if rows is None else particles.share)
        if drawn is not None and weights is not None:
            weights = weights[drawn]
        some = apart[:n] if rows is None else apart[rows]
        force, _ = rbf_repulsion(some, bandwidth, others, weights)
        # What the others drawn stand for
        return force * (len(apart) / len(others)), bandwidth

    def _bandwidth(self, drawn: Tensor, count: int, share: Share | None) -> Tensor:
        """Returns h for `count` particles, of which some are drawn; found together with others."""
        if not isinstance(self.bandwidth, str):
            return drawn.new_full((), self.bandwidth)
        if share is None:
            h = median_bandwidth(drawn)
        else:
            h = shared_median_bandwidth(drawn, *share.part(), share.total)
        return h * (math.log(len(drawn)) / math.log(count))

    def _draw(self, everyone: Tensor, particles: Particles) -> Tensor | None:
        """Returns the places of those to repel from, drawn anew at each step; None for all."""
        if self.subset is None or self.subset >= len(everyone):
            return None
        generator = step_generator(particles.seed, particles.step)
        order = torch.randperm(len(everyone), generator=generator)
        return order[: self.subset].to(everyone.device)
