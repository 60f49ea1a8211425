"""The loop: all particles go down the noise levels together, and repel each other on the way."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastrepulse.checks import check_finite
from fastrepulse.methods.base import Method, Particles, Push
from fastrepulse.noise import particle_noise
from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.denoiser import Denoiser
from fastrepulse.sampling.results import StepDiagnostics
from fastrepulse.schedule import NoiseSchedule


class DenoiseLoop:
    """Denoises particles in place: s_i <- s_i + what the method adds, at every noise level.

    Everything but the embeddings goes micro-batch by micro-batch, so that memory beyond one of them
    is that of three sets of latents: what the scheduler holds, what the model says, and the clean
    latents that it predicts.

    Args:
        x: Noisy latents [prompts * N, C, H, W], scaled as the scheduler holds them. They may lie in
            host memory while the model is on a GPU.
        denoise: The model with its prompts.
        scheduler: A diffusers scheduler with its timesteps set.
        method: The repulsion, or another; None for independent particles.
        num_particles: N, for each prompt.
        seed: From which everything random is drawn.
        guidance_window: Noise levels (from, to) inside which there is guidance.
        micro_batch_size: How many particles go through the model at once.
        corrections: Steps to take at a noise level before the one that leaves it.
        start: The number of the step to begin with.
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
        self.schedule = NoiseSchedule.of(scheduler)
        starts = range(0, len(x), micro_batch_size)
        self.parts = [slice(first, min(first + micro_batch_size, len(x))) for first in starts]
        # Some schedulers remember past outputs, so each micro-batch has its own
        self.schedulers = [copy.deepcopy(scheduler) for _ in self.parts]
        for own in self.schedulers:
            if start and hasattr(own, "set_begin_index"):
                own.set_begin_index(start)
        self.prompts = torch.arange(len(x), device=denoise.device) // num_particles
        self.output, self.denoised = torch.empty_like(x), torch.empty_like(x)
        self.square_score = 0.0

    def run(self, stop: int | None = None, progress: bool = False) -> list[StepDiagnostics]:
        """Takes all steps from `start` to `stop`, by default to the end.

        Returns:
            What happened at each step.

        Raises:
            FloatingPointError: If a value stops being finite; names the step and the particle.
        """
        steps = range(self.start, len(self.scheduler.timesteps) if stop is None else stop)
        diagnostics = []
        with self._progress_bar(steps, progress) as self._bar:
            for step in steps:
                for number, correction in enumerate(self._corrections_at(step)):
                    self.predict(step)
                    push = self._push(step, ends=False) if correction.pushes() else Push()
                    self._correct(step, number, correction, push)
                self.predict(step)
                push = self._push(step, ends=step == len(self.scheduler.timesteps) - 1)
                score_norm = math.sqrt(self.square_score / len(self.x))
                diagnostics.append(StepDiagnostics.of(self.schedule.sigmas[step], score_norm, push))
                self._advance(step, push)
        return diagnostics

    def predict(self, step: int) -> None:
        """Asks the model what it sees in all particles."""
        timestep, sigma = self.scheduler.timesteps[step], self.schedule.sigmas[step]
        guided = self.guidance_window[0] >= sigma >= self.guidance_window[1]
        time = float(timestep) / self.scheduler.config.num_train_timesteps
        self.square_score = 0.0
        for part, scheduler in zip(self.parts, self.schedulers, strict=True):
            held = self.x[part].to(self.denoise.device)
            text = self.denoise.text[self.prompts[part]]
            if self.method is not None:
                text = self.method.perturb_text(text, self._numbers(part), time, step, self.seed)
            said = self.denoise(scheduler.scale_model_input(held, timestep), timestep, text, guided)
            check_finite(said, "the model's output", step, part.start)
            z = self.schedule.noisy(held, step)
            clean = self.schedule.denoised(z, said, step)
            score = self.schedule.score(z, clean, step)
            self.square_score += score.float().square().sum().item()
            self.output[part], self.denoised[part] = said, clean
            self._bar.update(part.stop - part.start)

    def _push(self, step: int, ends: bool) -> Push:
        """Lets the method say what the particles do to each other; the run may end with it."""
        if self.method is None:
            return Push()
        particles = Particles(
            denoised=self.denoised,
            noisy=lambda part: self.schedule.noisy(self.x[part], step),
            sigma=self.schedule.sigmas[step],
            next_sigma=self.schedule.sigmas[step + 1],
            step=step,
            last=ends,
            num_particles=self.num_particles,
            seed=self.seed,
            micro_batch_size=self.micro_batch_size,
            device=self.denoise.device,
        )
        return self.method.push(particles)

    def _advance(self, step: int, push: Push) -> None:
        """Goes one noise level down."""
        timestep = self.scheduler.timesteps[step]
        for part, scheduler in zip(self.parts, self.schedulers, strict=True):
            held, said = (a[part].to(self.denoise.device) for a in (self.x, self.output))
            if push.change is not None:
                said = self.schedule.add_to_score(said, push.change(part), step)
            self.x[part] = scheduler.step(said, timestep, held).prev_sample

    def _correct(self, step: int, number: int, correction: Correction, push: Push) -> None:
        """Takes a step that stays at its noise level."""
        sigma, following = self.schedule.sigmas[step : step + 2]
        for part in self.parts:
            held, clean = (a[part].to(self.denoise.device) for a in (self.x, self.denoised))
            z = self.schedule.noisy(held, step)
            change = None if push.change is None else push.change(part)
            noise = None
            if correction.noisy():
                # Steps at one level come one after the other in the stream
                count = step * 10_000 + number
                shape = held.shape[1:]
                noise = particle_noise(self.seed, self._numbers(part), shape, "correction", count)
                noise = noise.to(z)
            score = self.schedule.score(z, clean, step)
            moved = correction.move(z, score, change, noise, sigma, following)
            self.x[part] = self.schedule.held(moved.to(held.dtype), step)

    def _corrections_at(self, step: int) -> list[Correction]:
        """Returns the corrections at a step, each as often as it is taken."""
        sigma = self.schedule.sigmas[step]
        acting = [correction for correction in self.corrections if correction.acts_at(sigma)]
        return [correction for correction in acting for _ in range(correction.steps)]

    def _numbers(self, part: slice) -> list[int]:
        """Returns the number of each particle of a slice within its prompt."""
        return [i % self.num_particles for i in range(part.start, part.stop)]

    def _progress_bar(self, steps: range, progress: bool) -> Any:
        # Counted in particles and evaluations of the model, shown in whole images
        passes = sum(1 + len(self._corrections_at(step)) for step in steps)
        return tqdm(
            desc="denoise",
            total=passes * len(self.x),
            unit_scale=1 / max(passes, 1),
            unit="img",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} "
            "[{elapsed}<{remaining}, {rate_fmt}]",
            disable=not progress,
        )
