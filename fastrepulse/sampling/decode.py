"""Latents to pictures, in memory or straight to a folder, and nothing is lost on the way."""

import logging
import tempfile
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastrepulse.layers import accelerated
from fastrepulse.models import Model, load_model
from fastrepulse.records import load_record, save_record
from fastrepulse.sampling.memory import choose_decode_batch_size, ran_out
from fastrepulse.sampling.output import (
    SavedImages,
    picture_path,
    save_picture,
    save_summary,
    to_pil,
)
from fastrepulse.sampling.results import SampleResult, StepDiagnostics
from fastrepulse.surroundings import undisturbed

LATENTS = "latents.safetensors"
"""What latents are saved as whose decoding was stopped."""

log = logging.getLogger("fastrepulse")


def decode(sd: Model, result: SampleResult, folder: Path | None, progress: bool) -> SampleResult:
    """Returns the result with its pictures, which go straight to the folder if there is one.

    Whatever stops it, the latents are saved: to the folder, or to a new temporary one.
    """
    try:
        if folder is None:
            with closing(_images(sd, result.latents, progress)) as images:
                return replace(result, images=list(images))
        folder.mkdir(parents=True, exist_ok=True)
        return _decode_into(sd, result, folder, progress)
    except BaseException:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="fastrepulse-"))
        keep_latents(result, folder)
        raise


@undisturbed()
def decode_folder(
    folder: str | Path,
    *,
    model: object = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> SampleResult:
    """Draws the pictures that are missing from a folder whose run was stopped while it decoded.

    Args:
        folder: Where the run left its latents.
        model: As `sample` takes it; by default the one that the run names.
        device: Where it is decoded; by default a CUDA GPU if there is one, else the CPU.
        progress: Whether to show a progress bar.

    Returns:
        What `sample` would have returned.

    Raises:
        FileNotFoundError: If there are no latents.
        ValueError: If they are damaged.
    """
    folder = Path(folder).expanduser()
    file = folder / LATENTS
    tensors, record = load_record(file)
    if "latents" not in tensors or not {"settings", "diagnostics"} <= record.keys():
        raise ValueError(f"file {str(file)!r} is not of a run that was stopped")
    settings, latents = record["settings"], tensors["latents"]
    diagnostics = [StepDiagnostics(**step) for step in record["diagnostics"]]
    if model is None:
        # Which a checkpoint may not say itself; any other is the one that is loaded already
        from_file = Path(settings["model"]).is_file()
        predicts = settings.get("prediction_type") if from_file else None
        sd = load_model(settings["model"], device, prediction_type=predicts)
    else:
        sd = load_model(model, device)
    result = SampleResult([], latents, diagnostics, settings)
    decoded = _decode_into(sd, result, folder, progress)
    file.unlink()
    return decoded


def keep_latents(result: SampleResult, folder: Path) -> None:
    """Saves latents with all that belongs to them, and says how to go on."""
    record = {
        "settings": result.settings,
        "diagnostics": [asdict(step) for step in result.diagnostics],
    }
    try:
        save_record(folder / LATENTS, {"latents": result.latents}, record)
    except OSError as error:
        log.warning("the latents could not be saved: %s", error)
        return
    drawn = len(list(folder.glob("[0-9]*.png")))
    log.warning(
        "stopped with %d of %d pictures drawn; `fastrepulse decode %s` draws the rest",
        drawn,
        len(result.latents),
        folder,
    )


def _decode_into(sd: Model, result: SampleResult, folder: Path, progress: bool) -> SampleResult:
    """Writes the pictures that a folder does not hold yet, while the next ones are decoded."""
    paths = [picture_path(folder, i) for i in range(len(result.latents))]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    writing: list[Future[Path]] = []
    drawing = _images(sd, result.latents[missing], progress)
    # Closed at once when writing fails: it holds the decoder
    with closing(drawing) as images, ThreadPoolExecutor() as pool:
        for i, image in zip(missing, images, strict=True):
            writing.append(pool.submit(save_picture, image, folder, i, result.settings))
            # No more than a batch or two wait in memory
            if len(writing) > 64:
                writing.pop(0).result()
        for last in writing:
            last.result()
    saved = replace(result, images=SavedImages(paths))
    save_summary(folder, saved.images, saved.settings, saved.diagnostics)
    return saved


def _images(sd: Model, latents: Tensor, progress: bool) -> Generator[Image.Image, None, None]:
    """Yields the pictures of latents; a batch that does not fit in memory is halved, for good."""
    size = choose_decode_batch_size(sd.vae, latents.shape[1:])
    done = 0
    with (
        accelerated(sd.vae),
        _dtype_kept(sd.vae),
        tqdm(total=len(latents), desc="decode", unit="img", disable=not progress) as bar,
    ):
        while done < len(latents):
            chunk = latents[done : done + size].to(sd.device)
            pictures = None
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
            yield from to_pil(pictures)
            done += len(chunk)
            bar.update(len(chunk))


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
