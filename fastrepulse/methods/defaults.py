"""The rule: from facts of a run to the settings of its repulsion."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from fastrepulse.checks import Window
from fastrepulse.embeddings.base import REFERENCE_SIDE

WINDOW, PAUSE, RESTART = Window(9.0, 4.0), Window(9.0, 0.3), Window(3.0, 1.0)
"""Noise levels of push, pause and restart for latents of REFERENCE_SIDE x REFERENCE_SIDE."""

FEW_STEPS = 8
"""Largest number of steps without guidance at which only the first two are pushed."""
FEW_STEPS_STRENGTH = 0.25
"""Factor on the strength in such a run; more leaves artefacts, which no later step removes."""


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run that the settings depend on.

    Args:
        height: Height in latent positions.
        width: Width in latent positions.
        sigmas: Noise level of each step, decreasing; None if they are unknown.
        guided: Whether the model is guided.
    """

    height: int
    width: int
    sigmas: tuple[float, ...] | None
    guided: bool

    @property
    def scale(self) -> float:
        """Factor on noise levels: an average over m latents sees noise sigma / sqrt(m)."""
        return math.sqrt(self.height * self.width) / REFERENCE_SIDE

    @property
    def has_few_steps(self) -> bool:
        """Whether the run is that of a model distilled to few steps."""
        return self.sigmas is not None and len(self.sigmas) <= FEW_STEPS and not self.guided


class Levels(NamedTuple):
    """At which noise levels a repulsion pushes, pauses guidance and restarts.

    Args:
        window: Noise levels of the push.
        pause: Noise levels without guidance, or None.
        restart: Noise levels of the restart, or None.
    """

    window: Window
    pause: Window | None
    restart: Window | None

    def uses_guidance_at(self, sigma: float, first: bool) -> bool:
        """Whether the model is guided at a noise level, `first` for the first step of a run."""
        if self.pause is None or (first and math.isfinite(self.pause.high)):
            return True
        return sigma not in self.pause

    def skips_first_step(self, next_sigma: float) -> bool:
        """Whether the first step is left to guidance, which decides on the subject."""
        later = self.pause is not None and math.isfinite(self.pause.high + self.window.high)
        return later and next_sigma >= self.window.low


def levels_for(run: RunFacts) -> Levels:
    """Returns the default noise levels of a run.

    - They are in proportion to the side of the latents. The embeddings average over parts of an
      image, and in an average over more latents the noise is smaller.
    - With few steps and without guidance the first step decides what an image shows, and nothing
      heals later. Then the first two steps are pushed, and there is neither pause nor restart.
    - A schedule that starts below the window is pushed from its first step on, down to the level at
      which the push ends at 16x16 latents.
    - A restart that would start the run anew is left out.
    """
    window, pause, restart = (levels.scaled(run.scale) for levels in (WINDOW, PAUSE, RESTART))
    if run.sigmas is None:
        return Levels(window, pause, restart)
    if run.has_few_steps:
        return Levels(Window(math.inf, run.sigmas[min(1, len(run.sigmas) - 1)]), None, None)
    if not any(sigma in window for sigma in run.sigmas):
        window = Window(math.inf, min(WINDOW.low, run.sigmas[0]))
    return Levels(window, pause, restart if restart.high < run.sigmas[0] else None)
