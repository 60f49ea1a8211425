"""What `sample()` returns: pictures, latents, diagnostics, and how to keep them."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fastrepulse.repulsion import Push


@dataclass(frozen=True)
class StepDiagnostics:
    """What happened at one step, averaged over prompts; NaN where nothing was embedded.

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
    def of(cls, sigma: float, score: Tensor, pushes: list[Push]) -> "StepDiagnostics":
        """Summarises a step from its scores [N, C, H, W] and the push within each prompt."""
        norm = score.float().flatten(1).square().sum(dim=1).mean().sqrt().item()
        return cls(
            sigma,
            norm,
            _mean([torch.pdist(push.embedded).mean().item() for push in pushes]),
            _mean([push.bandwidth for push in pushes]),
            _mean([push.force_norm for push in pushes]),
        )


@dataclass(frozen=True)
class SampleResult:
    """The pictures of one call, in the order of their particles, prompt after prompt.

    Args:
        images: The pictures.
        latents: The clean latents [prompts * N, C, H, W].
        diagnostics: One entry for each step.
        settings: Everything that the pictures depend on.
    """

    images: list[Image.Image]
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
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        prompts, count = self.settings["prompts"], self.settings["num_particles"]
        for i, image in enumerate(self.images):
            text = PngInfo()
            text.add_itxt("prompt", prompts[i // count])
            text.add_itxt("seed", str(self.settings["seed"]))
            text.add_itxt("particle", str(i % count))
            text.add_itxt("settings", json.dumps(self.settings))
            image.save(folder / f"{i:05d}.png", pnginfo=text)
        self.grid().save(folder / "grid.png")
        steps = [
            {key: None if math.isnan(value) else value for key, value in asdict(step).items()}
            for step in self.diagnostics
        ]
        record = {"settings": self.settings, "diagnostics": steps}
        (folder / "sample.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        return folder


def check_writable(folder: Path) -> None:
    """Raises before any work if pictures could not be written into a folder, made if need be.

    Raises:
        NotADirectoryError: If it, or what it would lie in, is a file.
        PermissionError: If nothing may be written there.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"out must be a folder, got {str(folder)!r}: a file is in the way")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"out must be a folder that can be written, got {str(folder)!r}")


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """Turns pictures [N, 3, H, W] in [0, 1] into PIL images."""
    array = (pictures.float() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def image_grid(images: list[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Lays pictures of one size out on a white sheet, row by row."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = (side + gap for side in images[0].size)
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
