"""What `sample()` returns: images, latents, diagnostics and settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fastrepulse.checks import FiniteCheck
from fastrepulse.methods.base import Push
from fastrepulse.sampling.output import (
    SavedImages,
    check_unused,
    image_grid,
    remove_run,
    save_picture,
    save_summary,
)


@dataclass(frozen=True)
class StepDiagnostics:
    """Measurements of one step, averaged over prompts; NaN without pairs.

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
    def of(
        cls, sigma: float, square_score: Tensor, push: Push, finite: FiniteCheck
    ) -> "StepDiagnostics":
        """Summarises a step, and waits for the device once.

        Args:
            sigma: Noise level of the step.
            square_score: Sum of squares of all particles' scores, and the number of particles, [2].
            push: The push of the step.
            finite: The values that must be finite.

        Raises:
            FloatingPointError: If one of these values is not finite.
        """
        total, count, *measured = finite.read(square_score, push.diagnostics())
        return cls(sigma, math.sqrt(total / count), *measured)


@dataclass(frozen=True)
class StepEnd:
    """The argument of `callback_on_step_end`: the state of a run after a step.

    Args:
        taken: Steps done.
        of: Steps in total; a repeated step counts each time.
        denoised: The clean prediction, [prompts * N, C, H, W]; the next step overwrites it.
        diagnostics: Measurements of the step.
    """

    taken: int
    of: int
    denoised: Tensor
    diagnostics: StepDiagnostics


@dataclass(frozen=True)
class SampleResult:
    """The images of one call in the order of the particles, prompt after prompt.

    Args:
        images: The images; images in a folder are opened on access.
        latents: The clean latents [prompts * N, C, H, W].
        diagnostics: One entry per step.
        settings: Everything that the images depend on.
    """

    images: Sequence[Image.Image]
    latents: Tensor
    diagnostics: list[StepDiagnostics]
    settings: dict[str, Any]

    def grid(self, columns: int | None = None) -> Image.Image:
        """Returns all images as one grid, by default about square."""
        return image_grid(self.images, columns)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes one PNG per particle, the grid and `sample.json`; returns the folder.

        Each PNG holds its prompt, seed, particle index and the settings as text chunks.

        Args:
            folder: A new folder, or one without images of another run.
            overwrite: Whether to remove another run's images, summary and checkpoints first.

        Raises:
            FileExistsError: If the folder holds another run and `overwrite` is False.
            OSError: If a file cannot be written; names the file.
        """
        folder = Path(folder).expanduser()
        if isinstance(self.images, SavedImages) and self.images.folder == folder.resolve():
            return folder
        if overwrite:
            remove_run(folder)
        check_unused(folder, "folder")
        for i, image in enumerate(self.images):
            save_picture(image, folder, i, self.settings)
        save_summary(folder, self.images, self.settings, self.diagnostics)
        return folder
