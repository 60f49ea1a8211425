"""Corrector steps, which stay at their noise level."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from fastrepulse.checks import Window, check_choice, check_count, check_positive

KINDS = ("score", "langevin", "random", "repulsive")


@dataclass(frozen=True)
class Correction:
    """Corrector steps at every noise level inside the window, before the step to the next level.

        z <- z + eta g + sqrt(2 eta) xi

    where g is the score ("score"), the score with the repulsion ("langevin"), zero ("random") or
    the repulsion alone ("repulsive"), and xi is unit noise for "langevin" and "random", else zero
    (A. Pondaven, "Repulsion in Stable Diffusion 2", MSc thesis, Imperial College London, 2023; the
    predictor-corrector sampler of Song et al. 2021, arXiv:2011.13456). Each corrector step needs
    one more evaluation of the model.

    Args:
        kind: What moves the particles.
        steps: Number of corrector steps per noise level, at least 1.
        step_size: eta in units of sigma^2, above 0; by default sigma (sigma - next_sigma), the step
            of Euler's method on the score.
        window: Noise levels (high, low) between which there are corrector steps.
    """

    kind: Literal["score", "langevin", "random", "repulsive"] = "langevin"
    steps: int = 1
    step_size: float | None = None
    window: Window | tuple[float, float] = (math.inf, 0.0)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_count("steps", self.steps)
        if self.step_size is not None:
            check_positive("step_size", self.step_size, "None or ")
        object.__setattr__(self, "window", Window.of("window", self.window))

    @property
    def uses_repulsion(self) -> bool:
        """Whether the repulsion moves the particles."""
        return self.kind in ("langevin", "repulsive")

    @property
    def uses_noise(self) -> bool:
        """Whether noise moves the particles."""
        return self.kind in ("langevin", "random")

    def move(
        self,
        z: Tensor,  # [n, C, H, W]
        score: Tensor,  # [n, C, H, W]
        repulsion: Tensor | None,  # [n, C, H, W]
        noise: Tensor | None,  # [n, C, H, W]
        sigma: float,
        next_sigma: float,
    ) -> Tensor:
        """Returns z after one corrector step."""
        eta = sigma * (sigma - next_sigma)
        if self.step_size is not None:
            eta = self.step_size * sigma**2
        if self.kind in ("score", "langevin"):
            z = z + eta * score
        if self.uses_repulsion and repulsion is not None:
            z = z + eta * repulsion
        return z if noise is None else z + math.sqrt(2 * eta) * noise

    def settings(self) -> dict[str, Any]:
        """Returns the arguments in a form that JSON can store."""
        return asdict(self) | {"window": Window(*self.window).plain()}
