"""Decodes latents to images, in memory or straight to a folder."""

import logging
from collections.abc import Collection, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastrepulse.layers import accelerated
from fastrepulse.methods.base import Partition
from fastrepulse.models import Model
from fastrepulse.out_of_memory import in_batches
from fastrepulse.sampling.memory import Budget
from fastrepulse.sampling.output import (
    SavedImages,
    is_saved,
    picture_path,
    save_picture,
    save_summary,
    to_pil,
)
from fastrepulse.sampling.results import SampleResult

log = logging.getLogger("fastrepulse")


def decode(
    sd: Model,
    result: SampleResult,
    partition: Partition,
    folder: Path | None,
    budget: Budget,
    progress: bool,
) -> SampleResult:
    """Returns the result with its images, which are written to the folder if there is one.

    Images of the run that the folder already holds are not written again. Their batches are
    decoded unchanged, since the last bits of an image depend on the other images of its batch.

    Args:
        sd: The model.
        result: Latents, diagnostics and settings.
        partition: Which particles of the run the latents are.
        folder: Folder of images, grid and summary.
        budget: The memory budget.
        progress: Whether to show a progress bar.
    """
    if folder is None:
        everything = range(len(result.latents))
        with closing(_images(sd, result.latents, everything, budget, progress)) as images:
            return replace(result, images=[image for _, image in images])
    folder.mkdir(parents=True, exist_ok=True)
    paths = [picture_path(folder, row) for row in range(partition.count)]
    missing = {
        i for i, row in enumerate(partition.rows) if not is_saved(folder, row, result.settings)
    }
    writing: list[Future[Path]] = []
    drawing = _images(sd, result.latents, missing, budget, progress)
    # Closed at once if writing fails, since it holds the decoder
    with closing(drawing) as images, ThreadPoolExecutor() as pool:
        for i, image in images:
            row = partition.rows[i]
            writing.append(pool.submit(save_picture, image, folder, row, result.settings))
            # At most a batch or two wait in memory
            if len(writing) > 64:
                writing.pop(0).result()
        for last in writing:
            last.result()
    saved = replace(result, images=SavedImages(paths))
    # Waits until all ranks have written their images
    partition.all_reduce(torch.zeros(1))
    if partition.rank == 0:
        save_summary(folder, saved.images, saved.settings, saved.diagnostics)
    return saved


def _images(
    sd: Model, latents: Tensor, wanted: Collection[int], budget: Budget, progress: bool
) -> Generator[tuple[int, Image.Image], None, None]:
    """Yields the indices and images of the wanted latents.

    Batches without a wanted image are skipped. If memory runs out, this and all later batches are
    halved.
    """

    def wanted_images(chunk: Tensor, rows: Tensor) -> list[tuple[int, Image.Image]]:
        places = [i for i, row in enumerate(rows.tolist()) if row in wanted]
        if not places:
            return []
        pictures = _finite_pictures(sd, chunk.to(sd.device))[places]
        return list(zip(rows[places].tolist(), to_pil(pictures), strict=True))

    def on_halving(size: int) -> None:
        log.warning("out of memory: now decoding %d images at once", size)

    rows = torch.arange(len(latents))
    size = min(budget.decode_batch_size(), len(latents))
    with (
        accelerated(sd.vae),
        _dtype_kept(sd.vae),
        tqdm(total=len(wanted), desc="decode", unit="img", disable=not progress) as bar,
    ):
        for images in in_batches(wanted_images, (latents, rows), size, on_halving):
            yield from images
            bar.update(len(images))


@contextmanager
def _dtype_kept(vae: Any) -> Iterator[None]:
    """Restores the dtype of an autoencoder at the end."""
    dtype = vae.dtype
    try:
        yield
    finally:
        if vae.dtype != dtype:
            vae.to(dtype)


def _finite_pictures(sd: Model, latents: Tensor) -> Tensor:
    """Returns images [n, 3, H, W]; a decoder that overflows in half precision becomes float32.

    Pixels that are not finite in float32 become black, with a warning, so that the other images are
    kept.
    """
    pictures = sd.decode(latents)
    if pictures.isfinite().all():
        return pictures
    if sd.vae.dtype != torch.float32:
        log.warning("the decoder overflows in %s: decoding in float32", sd.vae.dtype)
        sd.vae.float()
        pictures = sd.decode(latents)
    if not pictures.isfinite().all():
        log.warning("a decoded picture is not finite and black in places")
    return pictures.nan_to_num(0.0)
