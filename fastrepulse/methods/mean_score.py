"""The thesis's other repulsion: away from where the other particles go."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from fastrepulse.checks import check_window, in_window
from fastrepulse.methods.base import Method, Particles, Push
from fastrepulse.methods.embedded import settings_of


@dataclass(frozen=True)
class MeanScore(Method):
    """Adds -strength / (N - 1) sum_{j != i} s_j to the score: away from the others' mean score.

    A. Pondaven, "Repulsion in Stable Diffusion 2", MSc thesis, Imperial College London, 2023, where
    it is the simpler stand-in for the kernel's gradient.

    Args:
        strength: Weight against the particle's own score; below 0 attracts.
        window: Noise levels (from, to) inside which it acts.
    """

    strength: float = 0.3
    window: tuple[float, float] = (math.inf, 4.0)

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ValueError(f"strength must be a finite number, got {self.strength}")
        check_window("window", self.window)

    def push(self, particles: Particles) -> Push:
        if not in_window(particles.sigma, self.window):
            return Push()
        changes = []
        for own in particles.prompts():
            scores = particles.score(own)
            others = (scores.sum(dim=0) - scores) / (len(scores) - 1)
            changes.append(-self.strength * others)
        change = torch.cat(changes)
        return Push(lambda part: change[part])

    def settings(self) -> dict[str, Any]:
        return settings_of(self)
