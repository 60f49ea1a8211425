"""The thesis's second repulsion: away from the mean score of the other particles."""

import math
from dataclasses import dataclass

import torch

from fastrepulse.checks import Window, check_number
from fastrepulse.methods.base import Method, Particles, Push


@dataclass(frozen=True)
class MeanScore(Method):
    """Adds -strength / (N - 1) sum_{j != i} s_j to the score: away from the others' mean score.

    A. Pondaven, "Repulsion in Stable Diffusion 2", MSc thesis, Imperial College London, 2023, where
    it is a simpler alternative to the kernel's gradient.

    Args:
        strength: Weight relative to the particle's own score; below 0 attracts.
        window: Noise levels (high, low) between which it acts.
    """

    strength: float = 0.3
    window: Window | tuple[float, float] = (math.inf, 4.0)

    def __post_init__(self) -> None:
        check_number("strength", self.strength)
        object.__setattr__(self, "window", Window.of("window", self.window))

    def push(self, particles: Particles) -> Push:
        if particles.sigma not in self.window:
            return Push()
        changes = []
        for own in particles.prompts():
            scores = particles.score(own)
            others = (scores.sum(dim=0) - scores) / (len(scores) - 1)
            changes.append(-self.strength * others)
        return Push.of(torch.cat(changes), particles)
