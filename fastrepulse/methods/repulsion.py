"""The repulsion: which embedding, how strong, and at which noise levels."""

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.checks import Window, check_positive, is_integer
from fastrepulse.embeddings import Embedding
from fastrepulse.embeddings.base import REFERENCE_SIDE
from fastrepulse.kernels import (
    median_bandwidth,
    median_rbf_repulsion,
    rbf_repulsion,
    shared_median_bandwidth,
)
from fastrepulse.methods.bank import Bank
from fastrepulse.methods.base import Method, Particles, Partition, PromptForce, Push
from fastrepulse.methods.defaults import (
    FEW_STEPS_STRENGTH,
    Levels,
    RunFacts,
    levels_for,
)
from fastrepulse.methods.diagnostics import mean_distance, root_mean_square
from fastrepulse.methods.duplicates import separate_duplicates
from fastrepulse.methods.embedded import check_embedding
from fastrepulse.methods.pull_back import On, pull_back_forces
from fastrepulse.methods.step_length import with_step_length
from fastrepulse.noise import step_generator

log = logging.getLogger("fastrepulse")

AUTO: Literal["auto"] = "auto"
AT_REFERENCE = levels_for(RunFacts(REFERENCE_SIDE, REFERENCE_SIDE, sigmas=None, guided=True))
DEFAULT_EMBEDDING = "thirds"

DISTRIBUTED_FROM = 20_000
"""Particles of a prompt from which ranks divide the pairs among themselves."""


@dataclass(frozen=True)
class Repulsion(Method):
    """How the particles of one prompt repel each other.

    At each noise level inside the window the predicted noise of particle i becomes

        eps_i - strength * R_i / rms(R_i),    R_i = J(x0_i)^T F_i,    F_i = -grad_i sum_j k_ij

    where phi are the embeddings of the clean predictions x0, J is the Jacobian of phi, and
    k_ij = exp(-||phi_i - phi_j||^2 / h) is an RBF kernel (A. Pondaven, "Repulsion in Stable
    Diffusion 2", MSc thesis, Imperial College London, 2023). The thesis adds R_i / N to the score,
    so its size depends on the embedding, on N, on the latent size and on the noise level. Here the
    force gives the direction and `strength` gives the length: 1 is the length of the predicted
    noise, which has a root mean square of 1.

    `window`, `pause` and `restart` follow from the size of the latents, the noise levels and the
    guidance of a run if they are "auto" (`defaults.levels_for`).

    `pause` switches guidance off. Guidance sharpens a prompt's usual meaning and so undoes the
    push. Above the pause it decides on the subject; below, it removes artefacts (after the limited
    interval of Kynkäänniemi et al. 2024, arXiv:2404.07724). A step without guidance takes half the
    time. The first step of a run always has guidance, and no push if the next step is still inside
    the window.

    `restart` renoises the particles once after the push, and repeats the steps between its two
    noise levels. This removes the artefacts that the push leaves (Xu et al. 2023,
    arXiv:2306.14878). What the particles show is decided at higher noise levels and stays.

    No push moves a particle further than `MAX_MOVE` times the noise level that the step ends at:
    the model treats the push as noise, and a longer one would remain in the image. With few steps,
    which are long, this bound decides the length.

    Args:
        embedding: Where particles are compared: a name (`fastrepulse.embeddings.names()`) or a
            differentiable function from latents [N, C, H, W] to embeddings [N, d].
        strength: Length of the push relative to the predicted noise, for latents of 16x16; 0 only
            measures, below 0 attracts. The default depends on the embedding: 0.4 for most, more for
            embeddings of high frequency, since the model removes most of such a push. Embeddings of
            averages have as many dimensions at every size, so the length over all latents is
            multiplied by 16 / sqrt(H W) (`Embedding.length_factor`).
        on: What is embedded: the "noisy" latents, or the "denoised" prediction of the clean ones.
            For "denoised" the denoiser's Jacobian is taken to be a multiple of the identity, so no
            gradient runs through the model.
        window: Noise levels (high, low) between which particles repel. An infinite `high` includes
            the first step. "auto" is (9, 4) at 16x16 latents.
        pause: Noise levels (high, low) between which there is no guidance, if `strength` is above
            0. None keeps guidance throughout; an infinite `high` includes the first step. "auto" is
            (9, 0.3) at 16x16 latents.
        restart: Noise levels (high, low): at `low` the particles are renoised to `high`, once, if
            `strength` is above 0 and the window ends above `high`. None for no restart. "auto" is
            (3, 1) at 16x16 latents.
        bandwidth: "median" for the median heuristic h = median ||phi_i - phi_j||^2 / log N, or h
            itself, above 0.
        bank: Particles of earlier runs, or images, to repel from as well; a finished run is added.
        subset: Each particle repels from this many particles, drawn at each step, instead of all:
            for N beyond 100,000.

    `sample` and `repel` obey all settings. The other integrations, which do not run the model,
    cannot obey `pause` and `restart` and warn about them.

    Raises:
        ValueError: If a value is out of range or a name is unknown.
        TypeError: If a value has the wrong type.
    """

    embedding: str | embeddings.Embed = DEFAULT_EMBEDDING
    strength: float = None  # type: ignore[assignment]  # set below
    on: On = "denoised"
    window: Window | tuple[float, float] | Literal["auto"] = "auto"
    pause: Window | tuple[float, float] | Literal["auto"] | None = "auto"
    restart: Window | tuple[float, float] | Literal["auto"] | None = "auto"
    bandwidth: float | Literal["median"] = "median"
    bank: Bank | None = None
    subset: int | None = None
    joint = True

    def __post_init__(self) -> None:
        if self.strength is None:
            object.__setattr__(self, "strength", embeddings.build(self.embedding).strength)
        check_embedding(self)
        for name in Levels._fields:
            value = getattr(self, name)
            if value != AUTO and not (value is None and name != "window"):
                object.__setattr__(self, name, Window.of(name, value, f"{AUTO!r} or "))
        if not (isinstance(self.bandwidth, str) and self.bandwidth == "median"):
            check_positive("bandwidth", self.bandwidth, "'median' or ")
        if self.bank is not None and not isinstance(self.bank, Bank):
            raise TypeError(f"bank must be a Bank or None, got {self.bank!r}")
        if self.subset is not None and not (is_integer(self.subset) and self.subset >= 2):
            raise ValueError(f"subset must be None or an int of at least 2, got {self.subset!r}")

    def for_run(self, run: RunFacts) -> "Repulsion":
        """Returns the repulsion with numbers in place of every "auto".

        A warning names the noise levels of the run if no step is pushed.
        """
        chosen = levels_for(run)._asdict().items()
        resolved = replace(self, **{k: v for k, v in chosen if getattr(self, k) == AUTO})
        if run.has_few_steps and self.window == AUTO:
            resolved = replace(resolved, strength=FEW_STEPS_STRENGTH * self.strength)
        if run.sigmas and self.strength and not any(map(resolved.active_at, run.sigmas)):
            log.warning(
                "no step lies in the window %s, so nothing is pushed: the noise levels are %s",
                tuple(resolved.levels.window),
                ", ".join(f"{sigma:.3g}" for sigma in run.sigmas),
            )
        return resolved

    @property
    def levels(self) -> Levels:
        """The noise levels; before `for_run`, "auto" stands for latents of 16x16."""
        given: dict[str, Any] = {name: getattr(self, name) for name in Levels._fields}
        return AT_REFERENCE._replace(**{k: v for k, v in given.items() if v != AUTO})

    def active_at(self, sigma: float) -> bool:
        """Whether particles repel at a noise level."""
        return self.strength != 0 and sigma in self.levels.window

    def needs_step_at(self, sigma: float) -> bool:
        """Whether the step at a noise level must reach `push`: with a bank, every step must."""
        return self.active_at(sigma) or self.bank is not None

    def uses_guidance_at(self, sigma: float, first: bool) -> bool:
        return self.strength <= 0 or self.levels.uses_guidance_at(sigma, first)

    @property
    def restart_window(self) -> Window | None:
        window, _, restart = self.levels
        return restart if restart and self.strength > 0 and restart.high <= window.low else None

    @property
    def acts_on_one(self) -> bool:
        return self.bank is not None

    def push(self, particles: Particles) -> Push:
        """Returns the push of one step; outside the window, or without strength, diagnostics."""
        embedding = embeddings.build(self.embedding)
        skipped = particles.first and self.levels.skips_first_step(particles.next_sigma)
        active = self.active_at(particles.sigma) and not skipped
        # Without strength too: later runs can repel from particles that are only measured
        bank = self.bank if particles.sigma in self.levels.window else None
        if bank is not None:
            bank.open(particles, embedding.name, self.on, embedding)

        def force_fn(rows: Tensor, prompt: int) -> tuple[Tensor, PromptForce]:
            everyone, weights = rows, None
            if bank is not None:
                everyone, weights = bank.join(prompt, particles.step, rows)
            if len(everyone) == 1:
                no_pairs = rows.new_full((), math.nan)
                return torch.zeros_like(rows), PromptForce(no_pairs, no_pairs, rows.new_zeros(()))
            if particles.partition.world_size > 1 and len(everyone) >= DISTRIBUTED_FROM:
                return self._distributed_force(embedding, rows, everyone, weights, particles)
            force, h = self._force(embedding, everyone, slice(len(rows)), weights, particles)
            distance = mean_distance(rows[: self.subset])
            return force, PromptForce(distance, h, root_mean_square(force))

        push = Push()
        if active or particles.measure or bank is not None:
            seed = None if bank is None else bank.seed
            directions, prompts = pull_back_forces(
                embedding, self.on, particles, force_fn, seed, active
            )
            strength = self.strength * embedding.length_factor(*particles.denoised.shape[2:])
            changes = with_step_length(directions, strength, particles) if active else None
            push = Push(changes, prompts)
        if self.bank is not None and particles.last:
            self.bank.close()
        return push

    def _distributed_force(
        self,
        embedding: Embedding,
        rows: Tensor,
        everyone: Tensor,
        weights: Tensor | None,
        particles: Particles,
    ) -> tuple[Tensor, PromptForce]:
        """Returns the force [N, d] with only this rank's rows filled, and diagnostics of all."""
        partition = particles.partition
        first = partition.rows[0]
        local = slice(first, first + particles.prompts()[0].stop)
        force, h = self._force(embedding, everyone, local, weights, particles, partition)
        square = force.square().sum() / len(rows)
        distance, square = partition.all_reduce(
            torch.stack([mean_distance(rows, local=local), square])
        )
        padded = torch.zeros_like(rows)
        padded[local] = force
        return padded, PromptForce(distance, h, square.sqrt())

    def _force(
        self,
        embedding: Embedding,
        everyone: Tensor,  # [M, d]
        rows: slice,
        weights: Tensor | None,  # [M]
        particles: Particles,
        partition: Partition | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns F_i of some rows, [n, d], and the mean bandwidth of the embedding's kernels."""
        known = None if self.bandwidth == "median" else self.bandwidth
        drawn = self.subset is not None and self.subset < len(everyone)
        everyone_at_median = known is None and partition is None and rows == slice(len(everyone))
        forces, bandwidths = [], []
        for part in embedding.split(everyone):
            distinct = separate_duplicates(part, particles.seed, known)
            if everyone_at_median and not drawn:
                force, _, h = median_rbf_repulsion(distinct)
            else:
                force, h = self._force_on_some(distinct, rows, weights, particles, partition)
            forces.append(force)
            bandwidths.append(h)
        return torch.cat(forces, dim=1), torch.stack(bandwidths).mean()

    def _force_on_some(
        self,
        distinct: Tensor,  # [M, d]
        rows: slice,
        weights: Tensor | None,  # [M]
        particles: Particles,
        partition: Partition | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns F_i of some rows, [n, d], from all particles or a subset, and the bandwidth."""
        others = distinct
        if self.subset is not None and self.subset < len(distinct):
            generator = step_generator(particles.seed, particles.step)
            drawn = torch.randperm(len(distinct), generator=generator)[: self.subset]
            drawn = drawn.to(distinct.device)
            others, weights = distinct[drawn], None if weights is None else weights[drawn]
        h = self._bandwidth(others, len(distinct), partition)
        force, _ = rbf_repulsion(distinct[rows], h, others, weights)
        # Scaled up to the number of particles that the subset represents
        return force * (len(distinct) / len(others)), h

    def _bandwidth(self, others: Tensor, count: int, partition: Partition | None) -> Tensor:
        """Returns h for `count` particles from a subset of them, or from all ranks together."""
        if not isinstance(self.bandwidth, str):
            return others.new_full((), self.bandwidth)
        if partition is None:
            h = median_bandwidth(others)
        else:
            rank, world_size = partition.rank, partition.world_size
            h = shared_median_bandwidth(others, rank, world_size, partition.all_reduce)
        return h * (math.log(len(others)) / math.log(count))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return ({}, {}) if self.bank is None else self.bank.state()

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        if self.bank is not None:
            self.bank.restore(tensors, record)

    def settings(self) -> dict[str, Any]:
        """Returns the arguments in a form that JSON can store; a bank is its length."""
        settings = super().settings() | {"bank": None if self.bank is None else len(self.bank)}
        # The arguments alone, so that Repulsion(**settings) is the same again
        del settings["method"]
        return settings
