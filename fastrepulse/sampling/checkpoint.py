"""Checkpoints: what a run needs to go on, in the folder that its pictures will be in."""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrepulse.models import Model
from fastrepulse.safetensors_record import load_record, save_record
from fastrepulse.sampling.loop import DenoiseLoop
from fastrepulse.sampling.output import CHECKPOINTS
from fastrepulse.sampling.request import Request
from fastrepulse.sampling.state import state_of
from fastrepulse.version import __version__

KEPT = 2
"""How many there are: should the newest be damaged, the one before it is used."""

log = logging.getLogger("fastrepulse")


class Checkpoints:
    """The newest checkpoints of one run.

    Each is written beside the others and renamed when it is whole, so that a run which is killed at
    any moment leaves one to go on from.

    Args:
        folder: Where they lie; None for a run that writes nothing.
        every: Seconds from one to the next, 0 for one after every step; None for none on the way.
        about: What a run that goes on has to know beside the state of the loop; JSON can hold it.
    """

    def __init__(self, folder: Path | None, every: float | None, about: Mapping[str, Any]):
        self.folder = folder
        self.every = None if folder is None else every
        self.about = about
        self._written = time.monotonic()

    @classmethod
    def of(
        cls, request: Request, model: Model, settings: Mapping[str, Any], loop: DenoiseLoop
    ) -> "Checkpoints":
        """Returns those of a run that begins."""
        about = {
            "settings": settings,
            "made_with": made_with(model),
            # Which the pictures depend on by rounding
            "micro_batch_size": loop.micro_batch_size,
            "compile": loop.denoise.compiled,
            "attention": request.attention,
        }
        return cls(request.folder, request.checkpoint_every, about)

    def after_step(self, loop: DenoiseLoop) -> None:
        """Writes one if it is time; a disk that is full is said, and the run goes on."""
        if self.folder is None or self.every is None:
            return
        due = loop.share.leads and time.monotonic() - self._written >= self.every
        # One clock for all processes
        if loop.share.total(torch.tensor([due])).any():
            self._write(loop, self.folder)

    @contextmanager
    def guarding(self, loop: DenoiseLoop) -> Iterator[None]:
        """Keeps what has been denoised until the pictures are drawn, whatever stops that.

        Without a folder it is a new temporary one that a run which is stopped can go on in.
        """
        written = False
        if self.folder is not None and self.every is not None:
            written = self._write(loop, self.folder)
        try:
            yield
        except BaseException:
            folder = self.folder or Path(tempfile.mkdtemp(prefix="fastrepulse-"))
            # Processes that share a run cannot meet here
            alone = len(loop.x) == loop.share.count
            if written or (alone and self._write(loop, folder)):
                drawn = len(list(folder.glob("[0-9]*.png")))
                log.warning(
                    "stopped with %d of %d pictures drawn; `fastrepulse resume %s` draws the rest",
                    drawn,
                    loop.share.count,
                    folder,
                )
            raise
        if self.folder is not None and loop.share.leads:
            for path in self.folder.glob(f"{CHECKPOINTS}*"):
                if path.is_dir():
                    # Of a process that was killed as it wrote
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _write(self, loop: DenoiseLoop, folder: Path) -> bool:
        """Writes one, and removes all but the one before; says whether it could."""
        tensors, record = state_of(loop)
        self._written = time.monotonic()
        if not loop.share.leads:
            return True
        path = folder / f"checkpoint-{loop.taken:06d}.safetensors"
        try:
            save_record(path, tensors, {**self.about, "loop": record})
        except OSError as error:
            log.warning("no checkpoint after %d steps: %s", loop.taken, error)
            return False
        for old in _newest_first(folder)[KEPT:]:
            old.unlink(missing_ok=True)
        return True


def made_with(model: Model) -> dict[str, str]:
    """Returns what has to be the same where a run goes on, beside its settings."""
    return {"fastrepulse": __version__, "weights": model.fingerprint()}


def last_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the record of the newest checkpoint that can be used.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If all are damaged.
    """
    paths = _newest_first(folder)
    if not paths:
        raise FileNotFoundError(f"folder {str(folder)!r} has no checkpoint of a run to go on from")
    for path in paths:
        try:
            return load_record(path)
        except ValueError as error:
            log.warning("a checkpoint is damaged: %s", error)
    raise ValueError(f"folder {str(folder)!r} has no checkpoint that can be used")


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(CHECKPOINTS), reverse=True)
