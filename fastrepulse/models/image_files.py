"""Reads image files of any common format, and encodes them as latents."""

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastrepulse.models.model import Model
from fastrepulse.torch_settings import undisturbed

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif"),
)
"""Suffixes of image files; some builds of Pillow cannot read the last three."""

log = logging.getLogger("fastrepulse")


@undisturbed()
def encode_folder(
    folder: str | Path, model: Model, height: int | None = None, width: int | None = None
) -> Tensor:  # [M, C, H, W]
    """Returns the latents of all images in a folder, cropped and resized to one size.

    A file that cannot be read is skipped with a warning.

    Args:
        folder: A folder of image files (`SUFFIXES`), such as the folder of an earlier run.
        model: What `fastrepulse.load_model` returned.
        height: In pixels; by default the model's native height.
        width: In pixels; by default the model's native width.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If no image in the folder can be read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    # A run saves a grid of all its images beside them
    if (folder / "sample.json").exists():
        paths = [path for path in paths if path.name != "grid.png"]
    latents = []
    for path in paths:
        try:
            fitted = read_fitted(path, model, height, width)
        except ValueError as error:
            log.warning("%s is skipped: %s", path, error)
            continue
        image = torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 255
        latents.append(model.encode(image[None].to(model.device, model.dtype)))
    if not latents:
        raise ValueError(
            f"folder must hold images that can be read ({', '.join(SUFFIXES)}), got {str(folder)!r}"
        )
    return torch.cat(latents)


def read_fitted(
    path: Path, model: Model, height: int | None = None, width: int | None = None
) -> Image.Image:
    """Reads an image as RGB, cropped and resized; raises ValueError if it cannot be read."""
    _, rows, columns = model.latent_shape(height, width)
    try:
        image = read_image(path)
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    return ImageOps.fit(image, (columns * model.vae_scale_factor, rows * model.vae_scale_factor))


def read_image(path: Path) -> Image.Image:
    """Reads an image as 8-bit RGB: upright, on a white background, the first frame of an animation.

    A warning of Pillow that the image is suspiciously large is raised as an error.
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
    """Converts a grey image with 16 or 32 bits or with floating-point values to RGB."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("not every pixel is a finite number")
    largest = values.max(initial=0.0)
    full = next((full for full in (1, 255, 65535) if largest <= full), largest)
    # Integers come from 16-bit images: small values are dark pixels, not fractions of 1
    if image.mode.startswith("I"):
        full = max(full, 65535)
    scaled = (values.clip(0) * (255 / full)).round().astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")
