"""Latents to pictures, in memory or straight to a folder."""

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
from fastrepulse.methods.base import Share
from fastrepulse.models import Model
from fastrepulse.out_of_memory import ran_out
from fastrepulse.sampling.memory import Budget
from fastrepulse.sampling.output import (
    SavedImages,
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
    share: Share,
    folder: Path | None,
    budget: Budget,
    progress: bool,
) -> SampleResult:
    """Returns the result with its pictures, which go straight to the folder if there is one.

    Pictures that the folder holds already are not written again. The batches that they were in are
    decoded as they were: a picture depends in its last bits on those beside it.

    Args:
        sd: The model.
        result: Latents, diagnostics and settings.
        share: Which the latents are among all particles of the run.
        folder: Where pictures, grid and summary go.
        budget: Of memory.
        progress: Whether to show a progress bar.
    """
    if folder is None:
        everything = range(len(result.latents))
        with closing(_images(sd, result.latents, everything, budget, progress)) as images:
            return replace(result, images=[image for _, image in images])
    folder.mkdir(parents=True, exist_ok=True)
    paths = [picture_path(folder, row) for row in range(share.count)]
    missing = {i for i, row in enumerate(share.rows) if not paths[row].exists()}
    writing: list[Future[Path]] = []
    drawing = _images(sd, result.latents, missing, budget, progress)
    # Closed at once when writing fails: it holds the decoder
    with closing(drawing) as images, ThreadPoolExecutor() as pool:
        for i, image in images:
            row = share.rows[i]
            writing.append(pool.submit(save_picture, image, folder, row, result.settings))
            # No more than a batch or two wait in memory
            if len(writing) > 64:
                writing.pop(0).result()
        for last in writing:
            last.result()
    saved = replace(result, images=SavedImages(paths))
    # When all processes have drawn theirs
    share.total(torch.zeros(1))
    if share.leads:
        save_summary(folder, saved.images, saved.settings, saved.diagnostics)
    return saved


def _images(
    sd: Model, latents: Tensor, wanted: Collection[int], budget: Budget, progress: bool
) -> Generator[tuple[int, Image.Image], None, None]:
    """Yields the numbers and the pictures of some latents.

    Batches in which none is wanted are left out; one that does not fit in memory is halved, for
    good.
    """
    size = budget.decode_batch_size()
    done = 0
    with (
        accelerated(sd.vae),
        _dtype_kept(sd.vae),
        tqdm(total=len(wanted), desc="decode", unit="img", disable=not progress) as bar,
    ):
        while done < len(latents):
            chunk = latents[done : done + size]
            of_it = [i for i in range(done, done + len(chunk)) if i in wanted]
            if not of_it:
                done += len(chunk)
                continue
            chunk, pictures = chunk.to(sd.device), None
            try:
                pictures = _finite_pictures(sd, chunk)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error) or len(chunk) == 1:
                    raise
            if pictures is None:
                # Not while the error is handled, which keeps what the pass had allocated
                size = len(chunk) // 2
                torch.cuda.empty_cache()
                log.warning("out of memory: %d pictures are decoded at once now", size)
                continue
            yield from zip(of_it, to_pil(pictures[[i - done for i in of_it]]), strict=True)
            done += len(chunk)
            bar.update(len(of_it))


@contextmanager
def _dtype_kept(vae: Any) -> Iterator[None]:
    """Puts an autoencoder back into its dtype in the end."""
    dtype = vae.dtype
    try:
        yield
    finally:
        if vae.dtype != dtype:
            vae.to(dtype)


def _finite_pictures(sd: Model, latents: Tensor) -> Tensor:
    """Returns pictures [n, 3, H, W]; a decoder that overflows in half precision becomes float32.

    Values that are not finite in float32 either become black, with a warning: the rest of the run
    is worth keeping.
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
