"""What `sample()` returns: pictures, latents, diagnostics and settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fastrepulse.checks import Watch
from fastrepulse.methods.base import Push
from fastrepulse.sampling.output import image_grid, save_picture, save_summary


@dataclass(frozen=True)
class StepDiagnostics:
    """What happened at one step, averaged over prompts; NaN where there are no pairs.

    Args:
        sigma: The noise level.
        score_norm: Root mean square over particles of the score's norm, before the repulsion.
        mean_pairwise_distance: Mean of ||phi_i - phi_j|| over pairs.
        bandwidth: h of the kernel.
        force_norm: Root mean square over particles of ||F_i||.
    """

    sigma: float
    score_norm: float
    mean_pairwise_distance: float
    bandwidth: float
    force_norm: float

    @classmethod
    def of(cls, sigma: float, square_score: Tensor, push: Push, watch: Watch) -> "StepDiagnostics":
        """Summarises a step: the one time that the host waits for the device.

        Args:
            sigma: The noise level.
            square_score: The sum of the squares of all particles' scores, and their number.
            push: What they did to each other.
            watch: What noted whether all was finite.

        Raises:
            FloatingPointError: If something was not.
        """
        total, count, *measured = watch.read(square_score, push.measured())
        return cls(sigma, math.sqrt(total / count), *measured)


@dataclass(frozen=True)
class StepEnd:
    """Where a run is when a step has been taken: what `callback_on_step_end` is told.

    Args:
        taken: How many steps have been taken.
        of: How many there are, those that are taken twice counted twice.
        denoised: The clean latents that the model predicts, [prompts * N, C, H, W]; the next step
            writes over them.
        diagnostics: What happened at the step.
    """

    taken: int
    of: int
    denoised: Tensor
    diagnostics: StepDiagnostics


@dataclass(frozen=True)
class SampleResult:
    """The pictures of one call, in the order of their particles, prompt after prompt.

    Args:
        images: The pictures; those that were written to a folder are opened when asked for.
        latents: The clean latents [prompts * N, C, H, W].
        diagnostics: One entry for each step that the particles took together.
        settings: Everything that the pictures depend on.
    """

    images: Sequence[Image.Image]
    latents: Tensor
    diagnostics: list[StepDiagnostics]
    settings: dict[str, Any]

    def grid(self, columns: int | None = None) -> Image.Image:
        """Returns all pictures on one sheet, by default as square as can be."""
        return image_grid(self.images, columns)

    def save(self, folder: str | Path) -> Path:
        """Writes one PNG a particle, the grid, and `sample.json`; returns the folder.

        Each PNG carries its prompt, seed, particle index and the settings as text chunks.
        """
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(self.images):
            save_picture(image, folder, i, self.settings)
        save_summary(folder, self.images, self.settings, self.diagnostics)
        return folder
