"""What a run of a ComfyUI sampler consists of: its noise levels, its repulsion and its restart."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrepulse.methods.defaults import RunFacts
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.schedule import HIGHEST_LEVEL, NoiseSchedule

ROUNDING = 1e-4
"""Relative difference below which two noise levels of a sampler are the same."""

PLACES = 1000
"""Places of a step that a bank tells apart."""


@dataclass(frozen=True)
class Run:
    """A run of a sampler under the repulsion.

    Args:
        repulsion: The repulsion, with numbers in place of every "auto".
        sigmas: The schedule in the model's own numbers, decreasing; for flow models from 1 to 0.
        schedule: The same noise levels as those of x0 + sigma * noise.
        from_noise: Whether the run starts from pure noise, and not from an image.
        guided: Whether the sampler guides the model.
        functions: Number of functions that follow guidance. A CFG++ sampler appends one.
    """

    repulsion: Repulsion
    sigmas: tuple[float, ...]
    schedule: NoiseSchedule
    from_noise: bool
    guided: bool
    functions: int

    @classmethod
    def of(
        cls,
        repulsion: Repulsion,
        guider: Any,
        sampler: Any,
        sigmas: Tensor,
        options: dict[str, Any],
        latent_image: Tensor | None,
        size: tuple[int, int],
    ) -> "Run":
        """Returns the run that a sampler is about to begin.

        Args:
            repulsion: The repulsion, which may leave settings to the rule.
            guider: ComfyUI's guider, with its model.
            sampler: ComfyUI's sampler.
            sigmas: The schedule, in the model's own numbers.
            options: The model options of the run.
            latent_image: The latents of the image that the run starts from, or zeros.
            size: Height and width in latent positions.
        """
        sampling = guider.inner_model.model_sampling
        own = tuple(sigmas.tolist())
        levels = tuple(level_of(sampling, sigma) for sigma in own)
        name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
        # For CFG++ a scale of 1 is guidance too
        guided = getattr(guider, "cfg", 1) > 1 or "cfg_pp" in name
        from_image = latent_image is not None and bool(latent_image.any())
        return cls(
            repulsion.for_run(RunFacts(*size, levels[:-1], guided)),
            own,
            # Of z itself, which samplers return
            NoiseSchedule(levels, (1.0,) * (len(levels) - 1), "epsilon"),
            not from_image or own[0] >= float(sampling.sigma_max) * (1 - ROUNDING),
            guided,
            len(options.get("sampler_post_cfg_function", ())),
        )

    def step_at(self, sigma: float) -> int:
        """Returns the number of the step in which a sampler asks the model at a noise level.

        Args:
            sigma: The noise level in the model's own numbers, up to rounding; it may lie between
                those of two steps.
        """
        lower = (i for i, each in enumerate(self.sigmas) if each < sigma * (1 - ROUNDING))
        return max(next(lower, len(self.sigmas)) - 1, 0)

    def place_in_bank(self, step: int, sigma: float) -> int:
        """Returns a number that increases along the run, between the noise levels too.

        Some samplers ask the model twice a step. A bank has embeddings at each place.
        """
        ends = self.sigmas[step : step + 2]
        part = (ends[0] - sigma) / (ends[0] - ends[-1]) if len(ends) == 2 else 0.0
        return PLACES * step + min(max(round(PLACES * part), 0), PLACES - 1)

    def next_level(self, step: int) -> float:
        """Returns the noise level that a step ends at."""
        levels = self.schedule.sigmas
        return levels[step + 1] if step + 1 < len(levels) else 0.0

    def is_first(self, step: int) -> bool:
        """Whether a step is the first of a run that starts from pure noise."""
        return self.from_noise and step == 0

    def pauses_at(self, step: int, level: float) -> bool:
        """Whether guidance pauses at a noise level in a step."""
        return self.guided and not self.repulsion.uses_guidance_at(level, self.is_first(step))

    @property
    def pushed(self) -> list[int]:
        """Numbers of the steps that are pushed."""
        levels, leads = self.schedule.sigmas, self.repulsion.levels
        return [
            step
            for step, (level, following) in enumerate(itertools.pairwise(levels))
            if self.repulsion.active_at(level)
            # The bound leaves nothing of a push in the last step
            and following > 0
            and not (self.is_first(step) and leads.skips_first_step(following))
        ]

    @property
    def jump(self) -> tuple[int, int] | None:
        """The step before which the restart renoises, and the step that it goes back to."""
        levels = self.schedule.sigmas
        if any(after >= before for before, after in itertools.pairwise(levels)):
            return None
        jump = self.schedule.jump(self.repulsion.restart_window)
        # A restart from the first step would be the whole run once more
        return jump if jump and jump[1] > 0 else None

    def summary(self) -> str:
        """Returns what happens in the run, for the page."""
        levels = self.schedule.sigmas
        steps, pushed = len(levels) - 1, len(self.pushed)
        parts = [f"{pushed} of {steps} steps are pushed"]
        if not pushed:
            window = " to ".join(f"{level:.3g}" for level in self.repulsion.levels.window)
            there = ", ".join(f"{level:.3g}" for level in levels[:-1])
            parts = [f"no step is pushed: the window is from {window}, the steps are at {there}"]
        paused = sum(self.pauses_at(step, level) for step, level in enumerate(levels[:-1]))
        parts += [f"guidance pauses in {paused}"] if paused else []
        if self.jump:
            low, high = (levels[step] for step in self.jump)
            parts.append(f"one restart goes from noise level {low:.3g} to {high:.3g}")
        if self.repulsion.bank is not None:
            parts.append(f"the bank has {len(self.repulsion.bank)} earlier images")
        return "; ".join(parts)


def level_of(sampling: Any, sigma: float) -> float:
    """Returns the noise level of x0 + sigma * noise for a noise level of a model of ComfyUI."""
    signal, noise = signal_and_noise(sampling, sigma)
    return noise / signal


def signal_and_noise(sampling: Any, sigma: float) -> tuple[float, float]:
    """Returns alpha and sigma of x = alpha x0 + sigma noise as a model of ComfyUI adds noise."""
    time = torch.tensor([sigma], dtype=torch.float32)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    signal = sampling.noise_scaling(time, zero.clone(), one).item()
    noise = sampling.noise_scaling(time, one.clone(), zero).item()
    return max(signal, 1 / HIGHEST_LEVEL), noise
