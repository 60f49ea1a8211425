"""Pictures from disk as latents, whatever kind of file they are."""

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastrepulse.models.model import Model
from fastrepulse.torch_settings import undisturbed

KINDS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif"),
)
"""What names of pictures end with; the last ones are read where Pillow can."""

log = logging.getLogger("fastrepulse")


@undisturbed()
def encode_folder(
    folder: str | Path, model: Model, height: int | None = None, width: int | None = None
) -> Tensor:  # [M, C, H, W]
    """Returns the latents of all pictures in a folder, cut to the model's size.

    A file that cannot be read is left out, and a warning names it.

    Args:
        folder: With pictures (`KINDS`); that of an earlier run will do.
        model: What `fastrepulse.load_model` returned.
        height: In pixels, by default the model's own.
        width: In pixels, by default the model's own.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no picture in it that can be read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist")
    # The sheet of all pictures, which a run leaves beside them, is not one of them
    sheet = {folder / "grid.png"} if (folder / "sample.json").exists() else set()
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS)
    latents = []
    for path in paths:
        if path in sheet:
            continue
        try:
            cut = read_fitted(path, model, height, width)
        except ValueError as error:
            log.warning("%s is left out: %s", path, error)
            continue
        picture = torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1).float() / 255
        latents.append(model.encode(picture[None].to(model.device, model.dtype)))
    if not latents:
        raise ValueError(
            f"folder must hold pictures that can be read ({', '.join(KINDS)}), got {str(folder)!r}"
        )
    return torch.cat(latents)


def read_fitted(
    path: Path, model: Model, height: int | None = None, width: int | None = None
) -> Image.Image:
    """Returns a picture in RGB, cut to a size that is the model's own by default.

    Raises:
        ValueError: If it cannot be read.
    """
    _, rows, columns = model.latent_shape(height, width)
    try:
        picture = read_picture(path)
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    return ImageOps.fit(picture, (columns * model.vae_scale_factor, rows * model.vae_scale_factor))


def read_picture(path: Path) -> Image.Image:
    """Returns a picture in RGB: upright, in 8 bits, what is transparent in it on white.

    Of an animation it is the first picture.

    Raises:
        OSError: If it cannot be read, or is cut off.
        ValueError: If there is nothing to see in it.
        Warning: If it is suspiciously large, as Pillow says.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        file = Image.open(path)
    with file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith(("I", "F")):
            return _in_8_bits(image)
        if not image.has_transparency_data:
            return image.convert("RGB")
        layer = image.convert("RGBA")
        if not np.asarray(layer)[..., 3].any():
            raise ValueError("every pixel is transparent")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Returns a grey picture of 16 or 32 bits, or of fractions, in RGB."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("not every pixel is a finite number")
    largest = values.max(initial=0.0)
    full = next((full for full in (1, 255, 65535) if largest <= full), largest)
    # Whole numbers of at most 1 are 16 bits of a dark picture, not fractions
    if image.mode.startswith("I"):
        full = max(full, 65535)
    scaled = (values.clip(0) * (255 / full)).round().astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")
