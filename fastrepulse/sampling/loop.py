"""The denoising loop: all particles are denoised together, with a method's push at every step."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor

from fastrepulse.checks import FiniteCheck
from fastrepulse.methods.base import Method, Particles, Partition, Push
from fastrepulse.noise import particle_noise
from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.denoiser import Denoiser
from fastrepulse.sampling.results import StepDiagnostics
from fastrepulse.schedule import NoiseSchedule
from fastrepulse.torch_settings import precise_dtype


@dataclass(frozen=True)
class Action:
    """One entry of the plan of a run.

    Args:
        kind: "denoise" goes down to the next noise level, "correct" stays at the noise level, and
            "renoise" goes up to the noise level of `step`.
        step: Number of the step.
        repeated: Whether the step was taken before the restart already.
        correction: The corrector step, for "correct".
        number: Number of the corrector step at its noise level, for "correct".
    """

    kind: Literal["denoise", "correct", "renoise"]
    step: int
    repeated: bool = False
    correction: Correction | None = None
    number: int = 0


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for all particles at one step; the next one overwrites it.

    Args:
        output: The model output, [prompts * N, C, H, W].
        denoised: The clean latents x0 that the output implies, of the same shape.
        square_score: Sum of squares of all particles' scores, and the number of particles, [2].
        finite: Collects values that must be finite at the step.
    """

    output: Tensor
    denoised: Tensor
    square_score: Tensor
    finite: FiniteCheck


class DenoiseLoop:
    """Denoises particles in place; at every step a method changes their scores.

    All work but the embeddings goes micro-batch by micro-batch, so memory beyond one micro-batch is
    three sets of latents: the scheduler's, the model output, and the clean prediction.

    Args:
        x: Noisy latents [prompts * N, C, H, W] of this rank, scaled as the scheduler holds them.
            They may lie in host memory while the model is on a GPU.
        denoise: The model with its prompts.
        scheduler: A diffusers scheduler with its timesteps set.
        method: The repulsion or another method; None for independent particles.
        num_particles: N, for each prompt.
        seed: Seed of everything random.
        micro_batch_size: Number of particles that go through the model at once.
        corrections: Corrector steps.
        partition: Which particles of the run these are; by default all.
    """

    def __init__(
        self,
        x: Tensor,
        denoise: Denoiser,
        scheduler: Any,
        method: Method | None,
        *,
        num_particles: int,
        seed: int,
        micro_batch_size: int,
        corrections: Sequence[Correction] = (),
        partition: Partition | None = None,
    ):
        self.x = x
        self.denoise = denoise
        self.scheduler = scheduler
        self.method = Method() if method is None else method
        self.num_particles = num_particles
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.corrections = corrections
        self.partition = Partition(range(len(x)), len(x)) if partition is None else partition
        self.schedule = NoiseSchedule.of(scheduler)
        self.times = (scheduler.timesteps / scheduler.config.num_train_timesteps).tolist()
        starts = range(0, len(x), micro_batch_size)
        self.parts = [slice(first, min(first + micro_batch_size, len(x))) for first in starts]
        self.schedulers = self._schedulers_at(0)
        self.diagnostics: list[StepDiagnostics] = []
        self.prompts = torch.tensor(self.partition.rows, device=denoise.device) // num_particles
        self._output, self.denoised = torch.empty_like(x), torch.empty_like(x)
        self.plan = self._plan()
        self.done = 0
        """Actions of the plan that are done."""

    def run(
        self,
        after_step: Callable[["DenoiseLoop"], None] = lambda _: None,
        after_batch: Callable[[int], None] = lambda _: None,
    ) -> list[StepDiagnostics]:
        """Takes the remaining actions of the plan.

        Args:
            after_step: Called with the loop after each step to a lower noise level.
            after_batch: Called with the number of particles after each pass of a micro-batch.

        Returns:
            Measurements of each step.

        Raises:
            FloatingPointError: If a value is not finite; names the step and the particle.
        """
        while self.done < len(self.plan):
            action = self.plan[self.done]
            if action.kind == "renoise":
                self._renoise(self.plan[self.done - 1].step + 1, action.step)
                self.done += 1
                continue
            predicted = self.predict(action.step, after_batch)
            if action.correction is not None:
                self._correct(action, action.correction, predicted)
                predicted.finite.read()
                self.done += 1
                continue
            push = self.method.push(self._particles(action, predicted))
            self._advance(action.step, predicted, push)
            sigma = self.schedule.sigmas[action.step]
            self.diagnostics.append(
                StepDiagnostics.of(sigma, predicted.square_score, push, predicted.finite)
            )
            self.done += 1
            after_step(self)
        return self.diagnostics

    def steps(self) -> tuple[int, int]:
        """Returns the steps done and the steps in total; a repeated step counts each time."""
        kinds = [action.kind for action in self.plan]
        return kinds[: self.done].count("denoise"), kinds.count("denoise")

    def passes(self) -> tuple[int, int]:
        """Returns the model passes done and in total, those of corrector steps included."""
        needed = [action.kind != "renoise" for action in self.plan]
        return sum(needed[: self.done]), sum(needed)

    def predict(
        self, step: int, after_batch: Callable[[int], None] = lambda _: None
    ) -> "Prediction":
        """Runs the model on all particles at a step."""
        timestep, sigma = self.scheduler.timesteps[step], self.schedule.sigmas[step]
        guided = self.method.uses_guidance_at(sigma, first=step == 0)
        # In float64 the sum does not depend on the micro-batches
        device = self.denoise.device
        square_score = torch.zeros(2, dtype=precise_dtype(device), device=device)
        square_score[1] = len(self.x)
        finite = FiniteCheck(step)
        for part, scheduler in zip(self.parts, self.schedulers, strict=True):
            sample = self.x[part].to(device)
            prompts = self.prompts[part]
            text = self.method.perturb_text(
                self.denoise.text.tokens[prompts],
                self._indices(part),
                self.times[step],
                step,
                self.seed,
            )
            model_input = scheduler.scale_model_input(sample, timestep)
            output = self.denoise(model_input, timestep, text, prompts, guided)
            finite.add(output, "the model's output", self.partition.rows[part])
            z = self.schedule.noisy(sample, step)
            denoised = self.schedule.denoised(z, output, step)
            score = self.schedule.score(z, denoised, step)
            square_score[0] += score.float().square().sum()
            self._output[part], self.denoised[part] = output, denoised
            after_batch(part.stop - part.start)
        square_score = self.partition.all_reduce(square_score)
        return Prediction(self._output, self.denoised, square_score, finite)

    def _plan(self) -> list[Action]:
        """Returns the actions of the run: corrector steps, denoising steps and one restart."""
        steps = range(len(self.scheduler.timesteps))
        plan = [action for step in steps for action in self._actions_at(step, repeated=False)]
        jump = self.schedule.jump(self.method.restart_window)
        if jump is None:
            return plan
        low, high = jump
        before = [action for action in plan if action.step < low]
        again = [
            action
            for step in steps[high:]
            for action in self._actions_at(step, repeated=step < low)
        ]
        return [*before, Action("renoise", high), *again]

    def _actions_at(self, step: int, repeated: bool) -> Iterator[Action]:
        """Yields the corrector steps at a noise level and the step to the next level."""
        sigma = self.schedule.sigmas[step]
        here = (each for each in self.corrections if sigma in each.window)
        several = [each for correction in here for each in repeat(correction, correction.steps)]
        for number, correction in enumerate(several):
            yield Action("correct", step, repeated, correction, number)
        yield Action("denoise", step, repeated)

    def _particles(self, action: Action, predicted: "Prediction") -> Particles:
        """Returns the particles as the method sees them."""
        step = action.step
        final = step == len(self.scheduler.timesteps) - 1
        return Particles(
            denoised=predicted.denoised,
            noisy=lambda part: self.schedule.noisy(self.x[part], step),
            sigma=self.schedule.sigmas[step],
            next_sigma=self.schedule.sigmas[step + 1],
            step=step,
            first=step == 0,
            last=final and action.kind == "denoise",
            num_particles=self.num_particles,
            seed=self.seed,
            micro_batch_size=self.micro_batch_size,
            device=self.denoise.device,
            partition=self.partition,
            finite=predicted.finite,
        )

    def _advance(self, step: int, predicted: "Prediction", push: Push) -> None:
        """Goes down one noise level."""
        timestep = self.scheduler.timesteps[step]
        changes = repeat(None) if push.changes is None else push.changes
        for part, scheduler, change in zip(self.parts, self.schedulers, changes, strict=False):
            # Copies, since some schedulers keep their arguments and both tensors are overwritten
            sample, output = (
                a[part].to(self.denoise.device, copy=True) for a in (self.x, predicted.output)
            )
            if change is not None:
                output = self.schedule.add_to_score(output, change, step)
            self.x[part] = scheduler.step(output, timestep, sample).prev_sample

    def _correct(self, action: Action, correction: Correction, predicted: "Prediction") -> None:
        """Takes a corrector step."""
        step, steps = action.step, len(self.scheduler.timesteps)
        sigma, next_sigma = self.schedule.sigmas[step : step + 2]
        changes: Iterator[Tensor | None] = repeat(None)
        if correction.uses_repulsion:
            changes = self.method.push(self._particles(action, predicted)).changes or changes
        for part, change in zip(self.parts, changes, strict=False):
            sample, denoised = (
                a[part].to(self.denoise.device) for a in (self.x, predicted.denoised)
            )
            z = self.schedule.noisy(sample, step)
            noise = None
            if correction.uses_noise:
                # Every corrector step of the run has its own number in the noise stream
                count = (step + action.repeated * steps) * 10_000 + action.number
                shape = sample.shape[1:]
                noise = particle_noise(self.seed, self._indices(part), shape, "correction", count)
                noise = noise.to(z)
            score = self.schedule.score(z, denoised, step)
            moved = correction.move(z, score, change, noise, sigma, next_sigma)
            self.x[part] = self.schedule.scheduler_sample(moved.to(sample.dtype), step)

    def _renoise(self, step: int, earlier: int) -> None:
        """Takes all particles from the noise level of a step up to that of an earlier step."""
        for part in self.parts:
            noise = particle_noise(self.seed, self._indices(part), self.x.shape[1:], "restart")
            self.x[part] = self.schedule.renoised(self.x[part], noise, step, earlier)
        self.schedulers = self._schedulers_at(earlier)

    def _schedulers_at(self, step: int) -> list[Any]:
        """Returns a scheduler for each micro-batch, since multistep schedulers keep outputs."""
        schedulers = [copy.deepcopy(self.scheduler) for _ in self.parts]
        for own in schedulers:
            if step and hasattr(own, "set_begin_index"):
                own.set_begin_index(step)
        return schedulers

    def _indices(self, part: slice) -> list[int]:
        """Returns the index of each particle of a slice within its prompt."""
        return [row % self.num_particles for row in self.partition.rows[part]]
