"""What `sample()` returns: pictures, latents, diagnostics, and how to keep them."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fastrepulse.methods.base import Push

GRID_PIXELS = 2**26
"""The most pixels of pictures on a grid that is written: what viewers open without complaint."""


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
    def of(cls, sigma: float, score_norm: float, push: Push) -> "StepDiagnostics":
        """Summarises a step from its score's norm and the push within each prompt."""
        prompts = push.prompts
        return cls(
            sigma,
            score_norm,
            _mean([prompt.mean_distance for prompt in prompts]),
            _mean([prompt.bandwidth for prompt in prompts]),
            _mean([prompt.force_norm for prompt in prompts]),
        )


class SavedImages(Sequence[Image.Image]):
    """Pictures that lie in a folder, each opened when it is asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> "SavedImages": ...
    def __getitem__(self, index: int | slice) -> "Image.Image | SavedImages":
        if isinstance(index, slice):
            return SavedImages(self.paths[index])
        with Image.open(self.paths[index]) as image:
            return image.copy()


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
        self.save_summary(folder)
        return folder

    def save_summary(self, folder: Path) -> None:
        """Writes `sample.json`, and the grid, smaller if it had more than `GRID_PIXELS`."""
        steps = [
            {key: None if math.isnan(value) else value for key, value in asdict(step).items()}
            for step in self.diagnostics
        ]
        record = {"settings": self.settings, "diagnostics": steps}
        (folder / "sample.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        shrunk = math.sqrt(GRID_PIXELS / (len(self.images) * math.prod(self.images[0].size)))
        image_grid(self.images, scale=min(1.0, shrunk)).save(folder / "grid.png")


def save_picture(image: Image.Image, folder: Path, i: int, settings: dict[str, Any]) -> Path:
    """Writes picture `i` of a call with its settings inside; returns its path."""
    count = settings["num_particles"]
    text = PngInfo()
    text.add_itxt("prompt", settings["prompts"][i // count])
    text.add_itxt("seed", str(settings["seed"]))
    text.add_itxt("particle", str(i % count))
    text.add_itxt("settings", json.dumps(settings))
    path = folder / f"{i:05d}.png"
    image.save(path, pnginfo=text)
    return path


def plain_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings as they come back from `sample.json`: numbers of any kind are plain ones.

    Raises:
        TypeError: If a method's `settings()` hold what JSON cannot.
    """

    def plain(value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"settings must be what JSON can hold, got {value!r}") from None

    return json.loads(json.dumps(settings, default=plain))


def check_writable(folder: Path, name: str = "out") -> None:
    """Raises before any work if nothing could be written into a folder, made if need be.

    Args:
        folder: The folder.
        name: The argument that it is of.

    Raises:
        NotADirectoryError: If it, or what it would lie in, is a file.
        PermissionError: If nothing may be written there.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(
            f"{name} must be a folder, got {str(folder)!r}: a file is in the way"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{name} must be a folder that can be written, got {str(folder)!r}")


def check_unused(folder: Path) -> None:
    """Raises before any work if a folder holds the pictures of another run."""
    if (folder / "sample.json").exists() or (folder / "00000.png").exists():
        raise FileExistsError(
            f"out must be a new folder, or one without pictures of another run, got {str(folder)!r}"
        )


def check_space(folder: Path, size: int) -> None:
    """Raises before any work if a folder's disk has less free space than that many bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise OSError(
            f"out must have room for {size / 1e6:.0f} MB of pictures, "
            f"{str(folder)!r} has {free / 1e6:.0f} MB"
        )


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """Turns pictures [N, 3, H, W] in [0, 1] into PIL images."""
    array = (pictures.float() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def image_grid(
    images: Sequence[Image.Image], columns: int | None = None, gap: int = 2, scale: float = 1.0
) -> Image.Image:
    """Lays pictures of one size out on a white sheet, row by row, each scaled down."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    size = [max(1, int(scale * side)) for side in images[0].size]
    width, height = (side + gap for side in size)
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, image in enumerate(images):
        shown = image if scale == 1 else image.resize(size, Image.Resampling.BOX)
        sheet.paste(shown, (i % columns * width, i // columns * height))
    return sheet


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
