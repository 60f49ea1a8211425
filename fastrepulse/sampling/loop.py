"""The loop: all particles go down the noise levels together, and repel each other on the way."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastrepulse.checks import Watch, in_window
from fastrepulse.methods.base import Method, Particles, Push, Share
from fastrepulse.noise import particle_noise
from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.denoiser import Denoiser
from fastrepulse.sampling.results import StepDiagnostics
from fastrepulse.schedule import NoiseSchedule


@dataclass(frozen=True)
class Prediction:
    """What the model predicts of all particles at one step.

    Args:
        output: The model's output, [prompts * N, C, H, W].
        denoised: The clean latents x0 that it means, of the same shape.
        square_score: The sum of the squares of all particles' scores, and their number, [2].
        watch: Notes what has to be finite at the step.
    """

    output: Tensor
    denoised: Tensor
    square_score: Tensor
    watch: Watch


class DenoiseLoop:
    """Denoises particles in place: s_i <- s_i + what the method adds, at every noise level.

    Everything but the embeddings goes micro-batch by micro-batch, so that memory beyond one of them
    is that of three sets of latents: what the scheduler holds, what the model says, and the clean
    latents that it predicts.

    Args:
        x: Noisy latents [prompts * N, C, H, W], scaled as the scheduler holds them. They may lie in
            host memory while the model is on a GPU. Where several processes share the run they are
            those of this one.
        denoise: The model with its prompts.
        scheduler: A diffusers scheduler with its timesteps set.
        method: The repulsion, or another; None for independent particles.
        num_particles: N, for each prompt.
        seed: From which everything random is drawn.
        guidance_window: Noise levels (from, to) inside which there is guidance.
        micro_batch_size: How many particles go through the model at once.
        corrections: Steps to take at a noise level before the one that leaves it.
        start: The number of the step to begin with.
        share: Which particles they are among all; by default they are all.
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
        guidance_window: tuple[float, float],
        micro_batch_size: int,
        corrections: Sequence[Correction] = (),
        start: int = 0,
        share: Share | None = None,
    ):
        self.x = x
        self.denoise = denoise
        self.scheduler = scheduler
        self.method = method
        self.num_particles = num_particles
        self.seed = seed
        self.guidance_window = guidance_window
        self.micro_batch_size = micro_batch_size
        self.corrections = corrections
        self.start = start
        self.share = Share.whole(len(x)) if share is None else share
        self.schedule = NoiseSchedule.of(scheduler)
        self.times = (scheduler.timesteps / scheduler.config.num_train_timesteps).tolist()
        starts = range(0, len(x), micro_batch_size)
        self.parts = [slice(first, min(first + micro_batch_size, len(x))) for first in starts]
        self.schedulers = self._schedulers_at(start)
        self.diagnostics: list[StepDiagnostics] = []
        # How many steps have been taken, and how many there are, those that are taken twice twice
        self.taken = self.of = 0
        self.prompts = torch.tensor(self.share.rows, device=denoise.device) // num_particles
        # Written anew at every prediction
        self._output, self.denoised = torch.empty_like(x), torch.empty_like(x)

    def run(
        self,
        stop: int | None = None,
        progress: bool = False,
        after_step: Callable[["DenoiseLoop"], None] = lambda _: None,
    ) -> list[StepDiagnostics]:
        """Takes all steps that are left from `start` to `stop`, by default to the end.

        Args:
            stop: The number of the step that is taken no more.
            progress: Whether to show a progress bar.
            after_step: Is called with the loop after each of them.

        Returns:
            What happened at each step.

        Raises:
            FloatingPointError: If a value stops being finite; names the step and the particle.
        """
        path = self._path(len(self.scheduler.timesteps) if stop is None else stop)
        self.of = len(path)
        with self._progress_bar(path, progress) as bar:
            while self.taken < len(path):
                step, before = path[self.taken], path[: self.taken]
                again = step in before
                if again and step <= before[-1]:
                    self._go_back(before[-1] + 1, step)
                for number, correction in enumerate(self._corrections_at(step)):
                    predicted = self.predict(step, bar)
                    push = Push()
                    if correction.pushes():
                        push = self._push(step, predicted, ends=False)
                    self._correct(step, number, correction, predicted, push, again)
                    predicted.watch.read()
                predicted = self.predict(step, bar)
                ends = step == len(self.scheduler.timesteps) - 1
                push = self._push(step, predicted, ends)
                self._advance(step, predicted, push)
                self.diagnostics.append(
                    StepDiagnostics.of(
                        self.schedule.sigmas[step], predicted.square_score, push, predicted.watch
                    )
                )
                self.taken += 1
                after_step(self)
        return self.diagnostics

    def predict(self, step: int, bar: tqdm | None = None) -> "Prediction":
        """Runs the model on all particles; what it returns holds until the next prediction.

        Args:
            step: At which step.
            bar: A progress bar, counted in particles.
        """
        timestep, sigma = self.scheduler.timesteps[step], self.schedule.sigmas[step]
        guided = in_window(sigma, self.guidance_window) and (
            self.method is None or self.method.guides(sigma, first=step == 0)
        )
        # The same however they are split, but where there is no float64
        device = self.denoise.device
        precise = torch.float32 if device.type == "mps" else torch.float64
        square_score = torch.zeros(2, dtype=precise, device=device)
        square_score[1] = len(self.x)
        watch = Watch(step)
        for part, scheduler in zip(self.parts, self.schedulers, strict=True):
            sample = self.x[part].to(device)
            prompts = self.prompts[part]
            text = self.denoise.text.tokens[prompts]
            if self.method is not None:
                text = self.method.perturb_text(
                    text, self._numbers(part), self.times[step], step, self.seed
                )
            model_input = scheduler.scale_model_input(sample, timestep)
            output = self.denoise(model_input, timestep, text, prompts, guided)
            watch.finite(output, "the model's output", self.share.rows[part])
            z = self.schedule.noisy(sample, step)
            denoised = self.schedule.denoised(z, output, step)
            score = self.schedule.score(z, denoised, step)
            square_score[0] += score.float().square().sum()
            self._output[part], self.denoised[part] = output, denoised
            if bar is not None:
                bar.update(part.stop - part.start)
        square_score = self.share.total(square_score)
        return Prediction(self._output, self.denoised, square_score, watch)

    def _path(self, stop: int) -> list[int]:
        """Returns the steps in the order in which they are taken: some twice, if the method says.

        At the lower noise level of a restart particles go back to the higher one.
        """
        steps = list(range(self.start, stop))
        levels = None if self.method is None else self.method.restarts()
        if levels is None:
            return steps
        first, end = (
            next((step for step in steps if self.schedule.sigmas[step] <= level), stop)
            for level in levels
        )
        return [*steps[: end - self.start], *range(first, stop)] if end < stop else steps

    def _go_back(self, step: int, earlier: int) -> None:
        """Takes all particles from the noise level of a step to that of an earlier one."""
        sigmas = self.schedule.sigmas
        added = math.sqrt(sigmas[earlier] ** 2 - sigmas[step] ** 2)
        for part in self.parts:
            noise = particle_noise(self.seed, self._numbers(part), self.x.shape[1:], "restart")
            z = self.schedule.noisy(self.x[part], step)
            noisier = z + added * noise.to(z)
            self.x[part] = self.schedule.scheduler_sample(noisier.to(self.x.dtype), earlier)
        self.schedulers = self._schedulers_at(earlier)

    def _schedulers_at(self, step: int) -> list[Any]:
        """Returns a scheduler for each micro-batch, since some remember past outputs."""
        schedulers = [copy.deepcopy(self.scheduler) for _ in self.parts]
        for own in schedulers:
            if step and hasattr(own, "set_begin_index"):
                own.set_begin_index(step)
        return schedulers

    def _push(self, step: int, predicted: "Prediction", ends: bool) -> Push:
        """Asks the method what the particles do to each other; the run may end with it."""
        if self.method is None:
            return Push()
        particles = Particles(
            denoised=predicted.denoised,
            noisy=lambda part: self.schedule.noisy(self.x[part], step),
            sigma=self.schedule.sigmas[step],
            next_sigma=self.schedule.sigmas[step + 1],
            step=step,
            first=step == 0,
            last=ends,
            num_particles=self.num_particles,
            seed=self.seed,
            micro_batch_size=self.micro_batch_size,
            device=self.denoise.device,
            share=self.share,
            watch=predicted.watch,
        )
        return self.method.push(particles)

    def _advance(self, step: int, predicted: "Prediction", push: Push) -> None:
        """Goes one noise level down."""
        timestep = self.scheduler.timesteps[step]
        for part, scheduler in zip(self.parts, self.schedulers, strict=True):
            # Copies: some schedulers remember what they are given, and this is written over
            sample, output = (
                a[part].to(self.denoise.device, copy=True) for a in (self.x, predicted.output)
            )
            if push.change is not None:
                output = self.schedule.add_to_score(output, push.change(part), step)
            self.x[part] = scheduler.step(output, timestep, sample).prev_sample

    def _correct(
        self,
        step: int,
        number: int,
        correction: Correction,
        predicted: "Prediction",
        push: Push,
        again: bool,
    ) -> None:
        """Takes a step that stays at its noise level."""
        sigma, following = self.schedule.sigmas[step : step + 2]
        for part in self.parts:
            sample, denoised = (
                a[part].to(self.denoise.device) for a in (self.x, predicted.denoised)
            )
            z = self.schedule.noisy(sample, step)
            change = None if push.change is None else push.change(part)
            noise = None
            if correction.noisy():
                # Steps at one level come one after the other in the stream
                count = (step + again * len(self.scheduler.timesteps)) * 10_000 + number
                shape = sample.shape[1:]
                noise = particle_noise(self.seed, self._numbers(part), shape, "correction", count)
                noise = noise.to(z)
            score = self.schedule.score(z, denoised, step)
            moved = correction.move(z, score, change, noise, sigma, following)
            self.x[part] = self.schedule.scheduler_sample(moved.to(sample.dtype), step)

    def _corrections_at(self, step: int) -> list[Correction]:
        """Returns the corrections at a step, each as often as it is taken."""
        sigma = self.schedule.sigmas[step]
        acting = [correction for correction in self.corrections if correction.acts_at(sigma)]
        return [correction for correction in acting for _ in range(correction.steps)]

    def _numbers(self, part: slice) -> list[int]:
        """Returns the number of each particle of a slice within its prompt."""
        return [row % self.num_particles for row in self.share.rows[part]]

    def _progress_bar(self, steps: list[int], progress: bool) -> Any:
        # Counted in one's own particles and evaluations of the model, shown in everyone's images
        passes, taken = (
            sum(1 + len(self._corrections_at(step)) for step in some)
            for some in (steps, steps[: self.taken])
        )
        return tqdm(
            desc="denoise",
            total=passes * len(self.x),
            initial=taken * len(self.x),
            unit_scale=self.share.count / len(self.x) / max(passes, 1),
            unit="img",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} "
            "[{elapsed}<{remaining}, {rate_fmt}]",
            disable=not progress,
        )
