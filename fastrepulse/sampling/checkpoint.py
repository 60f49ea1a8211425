"""Checkpoints: the state that a stopped run needs to go on, in the folder of its images."""

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrepulse.files import remove_unfinished
from fastrepulse.models import Model
from fastrepulse.safetensors_record import load_record, save_record
from fastrepulse.sampling.loop import DenoiseLoop
from fastrepulse.sampling.loop_state import state_of
from fastrepulse.sampling.output import CHECKPOINTS
from fastrepulse.sampling.request import Computing
from fastrepulse.version import __version__

KEPT = 2
"""Number of checkpoints kept: if the newest is damaged, the previous one is used."""

log = logging.getLogger("fastrepulse")


class Checkpoints:
    """The newest checkpoints of one run.

    Each checkpoint is written to a temporary file and then renamed, so that a run killed at any
    moment leaves a whole one.

    Args:
        folder: Folder of the checkpoints; None for a run that writes nothing.
        every: Seconds between checkpoints, 0 for one after every step; None for no checkpoints
            before the last step.
        about: What a resumed run needs besides the state of the loop, in a form for JSON.
    """

    def __init__(self, folder: Path | None, every: float | None, about: Mapping[str, Any]):
        self.folder = folder
        self.every = None if folder is None else every
        self.about = about
        self._written = time.monotonic()

    def after_step(self, loop: DenoiseLoop) -> None:
        """Writes a checkpoint if it is due; a failure is logged and the run goes on."""
        if self.folder is None or self.every is None:
            return
        due = loop.partition.rank == 0 and time.monotonic() - self._written >= self.every
        # The clock of rank 0 decides for all ranks
        if loop.partition.all_reduce(torch.tensor([due])).any():
            self._write(loop, self.folder)

    @contextmanager
    def guarding(self, loop: DenoiseLoop) -> Iterator[None]:
        """Keeps the denoised latents in a checkpoint until all images are decoded.

        Without a folder, an error inside the context writes the checkpoint to a new temporary one.
        """
        written = False
        if self.folder is not None and self.every is not None:
            written = self._write(loop, self.folder)
        try:
            yield
        except BaseException:
            folder = self.folder or Path(tempfile.mkdtemp(prefix="fastrepulse-"))
            # Other ranks may not reach this point
            alone = len(loop.x) == loop.partition.count
            if written or (alone and self._write(loop, folder)):
                drawn = len(list(folder.glob("[0-9]*.png")))
                log.warning(
                    "stopped with %d of %d images written; `fastrepulse resume %s` draws the rest",
                    drawn,
                    loop.partition.count,
                    folder,
                )
            raise
        if self.folder is not None and loop.partition.rank == 0:
            for path in _newest_first(self.folder):
                path.unlink(missing_ok=True)
            remove_unfinished(self.folder)

    def _write(self, loop: DenoiseLoop, folder: Path) -> bool:
        """Writes a checkpoint and removes old ones; returns whether it was written."""
        tensors, record = state_of(loop)
        self._written = time.monotonic()
        if loop.partition.rank != 0:
            return True
        steps, _ = loop.steps()
        path = folder / f"checkpoint-{steps:06d}.safetensors"
        try:
            save_record(path, tensors, {**self.about, "loop": record})
        except OSError as error:
            log.warning("no checkpoint after %d steps: %s", steps, error)
            return False
        for old in _newest_first(folder)[KEPT:]:
            old.unlink(missing_ok=True)
        return True


def about_run(
    computing: Computing, model: Model, settings: Mapping[str, Any], loop: DenoiseLoop
) -> dict[str, Any]:
    """Returns what a resumed run needs besides the state of the loop."""
    return {
        "settings": settings,
        "made_with": made_with(model),
        # The images depend on these by rounding
        "micro_batch_size": loop.micro_batch_size,
        "compile": loop.denoise.compiled,
        "attention": computing.attention,
    }


def made_with(model: Model) -> dict[str, str]:
    """Returns what a resumed run must have in common with the stopped one, besides settings."""
    return {"fastrepulse": __version__, "weights": model.fingerprint()}


def last_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the record of the newest undamaged checkpoint.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If all checkpoints are damaged.
    """
    paths = _newest_first(folder)
    if not paths:
        raise FileNotFoundError(f"folder {str(folder)!r} has no checkpoint of a stopped run")
    for path in paths:
        try:
            return load_record(path)
        except ValueError as error:
            log.warning("a checkpoint is damaged: %s", error)
    raise ValueError(f"folder {str(folder)!r} has only damaged checkpoints")


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(CHECKPOINTS), reverse=True)
