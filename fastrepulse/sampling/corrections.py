"""Steps at one noise level, between those that go down."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fastrepulse.checks import (
    check_choice,
    check_count,
    check_positive,
    check_window,
    in_window,
    plain_window,
    window_of,
)

KINDS = ("score", "langevin", "random", "repulsive")


@dataclass(frozen=True)
class Correction:
    """Steps that particles take at every noise level inside the window, before the next one down.

        z <- z + eta g + sqrt(2 eta) xi

    where g is the score ("score"), the score with the repulsion ("langevin"), nothing ("random") or
    the repulsion alone ("repulsive"), and xi is noise, which "langevin" and "random" have (A.
    Pondaven, "Repulsion in Stable Diffusion 2", MSc thesis, Imperial College London, 2023; the
    predictor-corrector sampler of Song et al. 2021, arXiv:2011.13456). Every step is one more
    evaluation of the model.

    Args:
        kind: What moves the particles.
        steps: How many, at least 1.
        step_size: eta in units of sigma^2, above 0; by default sigma (sigma - next_sigma), the step
            that Euler's method takes on the score.
        noise: Whether a "repulsive" step has noise.
        window: Noise levels (from, to) inside which there are such steps.
    """

    kind: Literal["score", "langevin", "random", "repulsive"] = "langevin"
    steps: int = 1
    step_size: float | None = None
    noise: bool = False
    window: tuple[float, float] = (math.inf, 0.0)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_count("steps", self.steps)
        if self.step_size is not None:
            check_positive("step_size", self.step_size, "None or ")
        if self.noise and self.kind != "repulsive":
            raise ValueError(f"noise is for kind='repulsive' to choose, got kind={self.kind!r}")
        check_window("window", self.window)

    def acts_at(self, sigma: float) -> bool:
        """Says whether there are such steps at a noise level."""
        return in_window(sigma, self.window)

    def pushes(self) -> bool:
        """Says whether what a method adds to the score moves the particles."""
        return self.kind in ("langevin", "repulsive")

    def noisy(self) -> bool:
        """Says whether a step has noise."""
        return self.noise or self.kind in ("langevin", "random")

    def move(
        self,
        z: Tensor,  # [n, C, H, W]
        score: Tensor,  # [n, C, H, W]
        repulsion: Tensor | None,  # [n, C, H, W]
        noise: Tensor | None,  # [n, C, H, W]
        sigma: float,
        next_sigma: float,
    ) -> Tensor:
        """Returns z after one step, given what a method adds to the score and unit noise."""
        eta = sigma * (sigma - next_sigma)
        if self.step_size is not None:
            eta = self.step_size * sigma**2
        if self.kind in ("score", "langevin"):
            z = z + eta * score
        if self.pushes() and repulsion is not None:
            z = z + eta * repulsion
        return z if noise is None else z + math.sqrt(2 * eta) * noise

    def settings(self) -> dict[str, Any]:
        """Returns the arguments as JSON can hold them."""
        return {
            "kind": self.kind,
            "steps": self.steps,
            "step_size": self.step_size,
            "noise": self.noise,
            "window": plain_window(self.window),
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Correction":
        """Returns the correction that says these settings."""
        return cls(**{**settings, "window": window_of(settings["window"])})
