"""Images on disk: PNGs that hold their settings, grids, and checks of their folder."""

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fastrepulse.files import whole_file, write_text

GRID_PIXELS = 2**26
"""Largest number of pixels of a written grid, which image viewers can open."""

CHECKPOINTS = "checkpoint-*.safetensors"
"""Pattern of checkpoint files."""


class SavedImages(Sequence[Image.Image]):
    """Images in a folder, each opened on access."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    @property
    def folder(self) -> Path:
        return self.paths[0].parent.resolve()

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
    """Returns the path of image `i` of a call."""
    return folder / f"{i:05d}.png"


def save_picture(image: Image.Image, folder: Path, i: int, settings: dict[str, Any]) -> Path:
    """Writes image `i` of a call with its settings inside; returns its path.

    The settings hold only the image's own prompt.
    """
    text = PngInfo()
    for name, value in _about(i, settings).items():
        text.add_itxt(name, value)
    path = picture_path(folder, i)
    with whole_file(path) as partial:
        image.save(partial, "PNG", pnginfo=text)
    return path


def is_saved(folder: Path, i: int, settings: dict[str, Any]) -> bool:
    """Whether a folder holds image `i` of the call with these settings."""
    try:
        with Image.open(picture_path(folder, i)) as image:
            return _about(i, settings).items() <= image.info.items()
    except OSError:
        return False


def _about(i: int, settings: dict[str, Any]) -> dict[str, str]:
    """Returns what the file of image `i` of a call says about it."""
    count = settings["num_particles"]
    prompt = settings["prompts"][i // count]
    own = settings | {"prompts": [prompt]}
    if isinstance(settings["negative_prompt"], list):
        own["negative_prompt"] = settings["negative_prompt"][i // count]
    return {
        "prompt": prompt,
        "seed": str(settings["seed"]),
        "particle": str(i % count),
        "settings": json.dumps(own),
    }


def check_writable(folder: Path, name: str = "out") -> None:
    """Raises if a folder, which may not exist yet, cannot be written.

    Args:
        folder: The folder.
        name: Name of the argument, for the message.

    Raises:
        NotADirectoryError: If the folder or one of its parents is a file.
        PermissionError: If the folder is not writable.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(
            f"{name} must be a folder, got {str(folder)!r}: a file is in the way"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{name} must be a folder that can be written, got {str(folder)!r}")


def check_unused(folder: Path, name: str = "out") -> None:
    """Raises if a folder, the argument `name`, holds images or the checkpoint of another run."""
    if any(folder.glob(CHECKPOINTS)):
        raise FileExistsError(
            f"{name} must be a new folder, got {str(folder)!r} of a stopped run: "
            f"`fastrepulse resume {folder}` continues it"
        )
    if any(_files_of_run(folder)):
        raise FileExistsError(
            f"{name} must be a new folder, or one without images of another run, "
            f"got {str(folder)!r}"
        )


def remove_run(folder: Path) -> None:
    """Removes the images, the summary and the checkpoints of a run from a folder."""
    # The checkpoints first: nobody can resume a run that has lost images
    for path in [*folder.glob(CHECKPOINTS), *_files_of_run(folder), folder / "grid.png"]:
        path.unlink(missing_ok=True)


def _files_of_run(folder: Path) -> list[Path]:
    """Returns the images of a run in a folder, and its summary."""
    return [
        path
        for path in folder.glob("*")
        if path.name == "sample.json" or re.fullmatch(r"\d{5,}\.png", path.name)
    ]


def check_space(folder: Path, size: int) -> None:
    """Raises if the disk of a folder has fewer than `size` free bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    total, _, free = shutil.disk_usage(existing)
    # Some network disks report no size at all
    if total and free < size:
        raise OSError(
            f"out must have room for {size / 1e6:.0f} MB of images, "
            f"{str(folder)!r} has {free / 1e6:.0f} MB"
        )


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """Returns PIL images of pixels [N, 3, H, W] in [0, 1]."""
    array = (pictures.float() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def image_grid(
    images: Sequence[Image.Image], columns: int | None = None, gap: int = 2, scale: float = 1.0
) -> Image.Image:
    """Returns a white sheet with images of one size, row by row, each scaled by `scale`."""
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
    """Writes `sample.json` and the grid, scaled down to `GRID_PIXELS` if it is larger.

    Args:
        folder: The folder.
        images: All images.
        settings: Everything that the images depend on.
        diagnostics: One dataclass per step.
    """
    steps = [
        {key: None if math.isnan(value) else value for key, value in asdict(step).items()}
        for step in diagnostics
    ]
    record = {"settings": settings, "diagnostics": steps}
    write_text(folder / "sample.json", json.dumps(record, indent=2) + "\n")
    shrunk = math.sqrt(GRID_PIXELS / (len(images) * math.prod(images[0].size)))
    grid = image_grid(images, scale=min(1.0, shrunk))
    with whole_file(folder / "grid.png") as partial:
        grid.save(partial)
