"""Pictures on disk: PNGs with their settings inside, grids, and folders that are fit for them."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

GRID_PIXELS = 2**26
"""The most pixels of pictures on a grid that is written: what viewers open without complaint."""

CHECKPOINTS = "checkpoint-*.safetensors"
"""What a run in a folder goes on from."""


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


def picture_path(folder: Path, i: int) -> Path:
    """Returns where picture `i` of a call lies."""
    return folder / f"{i:05d}.png"


def save_picture(image: Image.Image, folder: Path, i: int, settings: dict[str, Any]) -> Path:
    """Writes picture `i` of a call with what it depends on inside; returns its path.

    Of several prompts it carries its own. A picture is there whole or not at all.
    """
    count = settings["num_particles"]
    prompt = settings["prompts"][i // count]
    own = settings | {"prompts": [prompt]}
    if isinstance(settings["negative_prompt"], list):
        own["negative_prompt"] = settings["negative_prompt"][i // count]
    text = PngInfo()
    text.add_itxt("prompt", prompt)
    text.add_itxt("seed", str(settings["seed"]))
    text.add_itxt("particle", str(i % count))
    text.add_itxt("settings", json.dumps(own))
    path = picture_path(folder, i)
    partial = path.with_suffix(".partial")
    try:
        image.save(partial, "PNG", pnginfo=text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


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
    """Raises before any work if a folder holds the pictures of another run, or what they need."""
    if any(folder.glob(CHECKPOINTS)):
        raise FileExistsError(
            f"out must be a new folder, got {str(folder)!r} of a run that was stopped: "
            f"`fastrepulse resume {folder}` goes on with it"
        )
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


def save_summary(
    folder: Path,
    images: Sequence[Image.Image],
    settings: dict[str, Any],
    diagnostics: Sequence[Any],
) -> None:
    """Writes `sample.json`, and the grid, smaller if it had more than `GRID_PIXELS`.

    Args:
        folder: Where to.
        images: All pictures.
        settings: Everything that they depend on.
        diagnostics: A dataclass for each step.
    """
    steps = [
        {key: None if math.isnan(value) else value for key, value in asdict(step).items()}
        for step in diagnostics
    ]
    record = {"settings": settings, "diagnostics": steps}
    (folder / "sample.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    shrunk = math.sqrt(GRID_PIXELS / (len(images) * math.prod(images[0].size)))
    image_grid(images, scale=min(1.0, shrunk)).save(folder / "grid.png")
