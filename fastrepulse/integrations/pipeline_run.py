"""One call of a pipeline under the repulsion: its steps, and what happens at each."""

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastrepulse.integrations.call import Call
from fastrepulse.integrations.model_output import repelled_output
from fastrepulse.integrations.packing import latent_size_of, pack, unpack
from fastrepulse.methods.defaults import RunFacts
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.noise import particle_noise
from fastrepulse.schedule import NoiseSchedule

log = logging.getLogger("fastrepulse")

ONLY_FROM_THE_START = ("PNDM", "IPNDM")
"""Schedulers that cannot start in the middle of their schedule."""


@dataclass(frozen=True)
class How:
    """How the images of a pipeline repel each other; see `repel`."""

    repulsion: Repulsion
    group_size: int | None = None
    latent_size: tuple[int, int] | None = None
    seed: int | None = None


class PipelineRun:
    """The steps of one call of a pipeline, by the rule of `sample`.

    The scheduler of the call reports each step here, and gets the repulsion and the restart. The
    model of the call asks here whether guidance pauses.

    Args:
        call: The pipeline's call.
        how: How the images repel each other.
    """

    schedule: NoiseSchedule
    """The noise levels, known once the scheduler's timesteps are set."""
    latents: Tensor
    """What the last step ended with."""
    warns = True
    """Whether warnings about the run come from here."""

    def __init__(self, call: Call, how: How):
        self.call = call
        self.how = how
        self.repulsion = how.repulsion
        self.group_size = how.group_size or call.group_size
        self.latent_size = how.latent_size or call.latent_size
        self.seed = call.seed if how.seed is None else how.seed
        self.batch = call.batch
        self.guided = False
        self.step = 0
        self.taken = 0
        """Steps taken so far; a repeated step counts each time."""
        self._first_step = 0
        self._order = 1
        self._jump: tuple[int, int] | None = None

    @property
    def first(self) -> bool:
        """Whether the next step is the first of a run that starts from pure noise."""
        return self.step == 0

    @property
    def paused(self) -> bool:
        """Whether guidance pauses in the next step."""
        if not self.guided:
            return False
        return not self.repulsion.uses_guidance_at(self.schedule.sigmas[self.step], self.first)

    def plan(self, scheduler: Any) -> list[int]:
        """Returns the numbers of the steps to take, those of a restart twice.

        Args:
            scheduler: A plain scheduler with its timesteps set.
        """
        self.schedule = NoiseSchedule.of(scheduler)
        self.guided = self.call.guided
        self.step = self.taken = self._first_step = 0
        self._order = getattr(scheduler, "order", 1)
        self.repulsion = self._resolved(self._facts())
        self._jump = self._planned_jump(type(scheduler).__name__)
        steps = list(range(len(scheduler.timesteps)))
        if self._jump is None:
            return steps
        low, high = self._jump
        return steps[:low] + steps[high:]

    def begin_at(self, step: int) -> None:
        """Sets the step that the pipeline begins with, unless it has begun."""
        if self.taken or step == self.step:
            return
        if self._jump is not None:
            raise RuntimeError(
                f"{type(self.call.pipe).__name__} begins with step {step} where 0 was expected, so "
                "the restart is out of place; use a Repulsion with restart=None"
            )
        self.step = self._first_step = step
        self.repulsion = self._resolved(self._facts())

    def repelled(self, scheduler: Any, model_output: Tensor, sample: Tensor) -> Tensor:
        """Returns the model output after the repulsion."""
        if not self.taken:
            self._measure(sample)
        return self._push(scheduler, model_output, sample)

    def _push(self, scheduler: Any, model_output: Tensor, sample: Tensor) -> Tensor:
        return repelled_output(
            scheduler,
            self.step,
            model_output,
            sample,
            self.repulsion,
            first=self.first,
            group_size=self.group_size,
            latent_size=self.latent_size,
            seed=self.seed,
        )

    def advance(self, latents: Tensor) -> int | None:
        """Goes to the next step; returns its number if the restart goes back to that step.

        Args:
            latents: What the step ended with.
        """
        self.latents = latents
        self.step, self.taken = self.step + 1, self.taken + 1
        if self._jump is None or self.step != self._jump[0]:
            return None
        (_, self.step), self._jump = self._jump, None
        return self.step

    def renoised(self, sample: Tensor, step: int, earlier: int) -> Tensor:
        """Returns the latents of a step with the new noise of the restart, at an earlier step."""
        spatial = unpack(sample, self.latent_size)
        noise = particle_noise(self.seed, self._indices(len(sample)), spatial.shape[1:], "restart")
        return self.schedule.renoised(sample, pack(noise, sample), step, earlier)

    def _indices(self, count: int) -> list[int]:
        """Returns the index of each image within its prompt."""
        return [row % self.group_size for row in range(count)]

    def _facts(self) -> RunFacts:
        return RunFacts(*self.latent_size, self.schedule.sigmas[self._first_step : -1], self.guided)

    def _resolved(self, facts: RunFacts) -> Repulsion:
        return self.how.repulsion.for_run(facts)

    def _planned_jump(self, scheduler: str) -> tuple[int, int] | None:
        jump = self.schedule.jump(self.repulsion.restart_window, self._order)
        reason = self.call.why_not_all_steps
        if scheduler.startswith(ONLY_FROM_THE_START):
            reason = f"{scheduler} cannot start in the middle"
        if jump is not None and reason and self.warns:
            log.warning("there is no restart, since %s", reason)
        return None if reason else jump

    def _measure(self, sample: Tensor) -> None:
        """Corrects the size of the latents and of the batch at the first step."""
        self.batch = len(sample)
        size = latent_size_of(sample, self.latent_size)
        if size == self.latent_size:
            return
        expected, self.latent_size = self.latent_size, size
        self.repulsion = self._resolved(self._facts())
        jump = self.schedule.jump(self.repulsion.restart_window, self._order)
        if self._jump is not None and jump != self._jump and self.warns:
            log.warning(
                "the latents have %d x %d positions where the call of the pipeline says %d x %d: "
                "the restart is that of the latter; pass latent_size",
                *(*size, *expected),
            )
