"""Latents to pictures, in memory or straight to a folder."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastrepulse.layers import accelerated
from fastrepulse.models import Model
from fastrepulse.sampling.output import SavedImages, save_picture, save_summary, to_pil
from fastrepulse.sampling.results import SampleResult

log = logging.getLogger("fastrepulse")


def decode(
    sd: Model, result: SampleResult, folder: Path | None, batch_size: int, progress: bool
) -> SampleResult:
    """Returns the result with its pictures, which go straight to the folder if there is one."""
    images: list[Image.Image] = []
    paths: list[Path] = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    count = len(result.latents)
    try:
        with (
            accelerated(sd.vae),
            tqdm(total=count, desc="decode", unit="img", disable=not progress) as bar,
        ):
            for chunk in result.latents.split(batch_size):
                for image in to_pil(finite_pictures(sd, chunk.to(sd.device))):
                    if folder is None:
                        images.append(image)
                    else:
                        paths.append(save_picture(image, folder, len(paths), result.settings))
                    bar.update()
    except KeyboardInterrupt:
        if folder is not None:
            log.warning("stopped: %d of %d pictures are in %s", len(paths), count, folder)
        raise
    if folder is None:
        return replace(result, images=images)
    saved = replace(result, images=SavedImages(paths))
    save_summary(folder, saved.images, saved.settings, saved.diagnostics)
    return saved


def finite_pictures(sd: Model, latents: Tensor) -> Tensor:
    """Returns pictures [n, 3, H, W]; where the decoder overflows in half precision, in float32.

    Values that are not finite in float32 either become black, with a warning: the rest of the run
    is worth keeping.
    """
    pictures = sd.decode(latents)
    if pictures.isfinite().all():
        return pictures
    dtype = sd.vae.dtype
    if dtype != torch.float32:
        log.warning("the decoder overflows in %s: decoding in float32", dtype)
        sd.vae.float()
        try:
            pictures = sd.decode(latents)
        finally:
            sd.vae.to(dtype)
    if not pictures.isfinite().all():
        log.warning("a decoded picture is not finite and black in places")
    return pictures.nan_to_num(0.0)
