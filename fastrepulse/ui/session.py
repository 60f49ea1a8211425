"""What one person draws, from batch to batch: pictures, picks, and a run that can be stopped."""

import logging
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.metrics.spaces import to_pictures
from fastrepulse.models import Model
from fastrepulse.models.pictures import read_fitted
from fastrepulse.sampling.output import picture_path, to_pil
from fastrepulse.sampling.results import StepEnd
from fastrepulse.sampling.sample import sample
from fastrepulse.ui.batch import Batch
from fastrepulse.ui.measured import measured
from fastrepulse.ui.pca_map import PcaMap
from fastrepulse.ui.previews import Previews

Kind: TypeAlias = Literal["repelled", "independent"]
Pile: TypeAlias = Literal["unlike", "like"]
MOST_PICKED = 64
"""Pictures in a pile."""

log = logging.getLogger("fastrepulse")


class Stopped(Exception):
    """A person has pressed Stop."""


@dataclass(frozen=True)
class Drawn:
    """A batch that has been drawn, or stopped on the way.

    Args:
        batch: What was asked for.
        images: The "repelled" pictures, and the "independent" ones from the same noise if somebody
            asked for them.
        latents: Of the repelled ones, [N, C, H, W].
        measured: How different each of them are, as Markdown.
        stopped: Whether it was stopped, and the last pictures are what it was heading for.
    """

    batch: Batch
    images: dict[Kind, Sequence[Image.Image]]
    latents: Tensor
    measured: dict[Kind, str]
    stopped: bool


@dataclass
class View:
    """What there is to see of a run that goes on.

    Args:
        share: How much of it is done, in [0, 1].
        began: When, by `time.monotonic`; None while it waits for its turn.
        images: Previews, and pictures that are done.
        changes: How often it has changed.
    """

    share: float = 0.0
    began: float | None = None
    images: dict[Kind, Sequence[Image.Image]] = field(default_factory=dict)
    changes: int = 0

    def show(self, share: float, kind: Kind, images: Sequence[Image.Image] | None) -> None:
        """Changes it; without pictures those before stay."""
        self.share = share
        if images is not None:
            self.images = self.images | {kind: images}
        self.changes += 1


class Session:
    """The batches of one person, each in a folder of its own.

    One run goes on at a time, in another thread, whether or not somebody looks on.

    Args:
        model: What draws.
        model_name: Its folder, file or hub id, for programs and command lines; None for the
            shipped one.
        folder: Where new folders go.
        worker: Where runs go on: those of several sessions come one after the other.
    """

    def __init__(self, model: Model, model_name: str | None, folder: Path, worker: Executor):
        self.model, self.model_name = model, model_name
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="session-", dir=folder))
        self.drawn: list[Drawn] = []
        self.picked: dict[Pile, list[Image.Image]] = {"unlike": [], "like": []}
        self.view = View()
        self.error: Exception | None = None
        self._begun = 0
        self._worker = worker
        self._previews = Previews(model)
        self._stop = threading.Event()
        self._run: Future[None] | None = None

    @property
    def runs(self) -> bool:
        """Whether a run goes on."""
        return self._run is not None and not self._run.done()

    def start(self, batch: Batch) -> None:
        """Begins to draw a batch, with the pictures that are picked.

        Raises:
            RuntimeError: If a run goes on already.
            ValueError: If the batch cannot be drawn.
        """
        if self.runs:
            raise RuntimeError("a batch is being drawn already")
        # Numbered by what has begun: a run that failed has left its folder
        self._begun += 1
        folder = self.folder / f"batch-{self._begun:03d}"
        batch = replace(batch, unlike=self._keep(folder, "unlike"), like=self._keep(folder, "like"))
        self.view, self.error = View(), None
        self._stop.clear()
        self._run = self._worker.submit(self._draw, batch, folder)

    def stop(self) -> None:
        """Ends the run at its next step; the pictures that it was heading for are kept."""
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Waits until the run ends, or for some time."""
        if self._run is not None:
            futures.wait([self._run], seconds)

    def pick(self, pile: Pile, image: Image.Image) -> None:
        """Adds a picture to those to be like or unlike.

        Raises:
            ValueError: If there are too many.
        """
        if len(self.picked[pile]) >= MOST_PICKED:
            raise ValueError(f"{pile} must be at most {MOST_PICKED} pictures")
        self.picked[pile].append(image)

    def pick_file(self, pile: Pile, path: Path) -> None:
        """Adds a picture from the disk, cut to the model's size.

        Raises:
            ValueError: If it cannot be read, or there are too many.
        """
        try:
            picture = read_fitted(path, self.model)
        except ValueError as error:
            raise ValueError(f"{path.name} cannot be read: {error}") from None
        self.pick(pile, picture)

    def map(self) -> PcaMap | None:
        """Returns where the pictures of all batches lie, by the last batch's embedding."""
        if not self.drawn:
            return None
        embed = embeddings.build(self.drawn[-1].batch.embedding)
        with torch.no_grad():
            rows = torch.cat([embed(drawn.latents.float()) for drawn in self.drawn])
        return PcaMap.of(
            rows, [image for drawn in self.drawn for image in drawn.images["repelled"]]
        )

    def _keep(self, folder: Path, pile: Pile) -> Path | None:
        """Writes the pictures that are picked; returns their folder, if there are any."""
        if not self.picked[pile]:
            return None
        _write(self.picked[pile], folder / pile)
        return folder / pile

    def _draw(self, batch: Batch, folder: Path) -> None:
        try:
            self.view.began = time.monotonic()
            self._previews.restart()
            self.drawn.append(self._drawn(batch, folder))
        except Exception as error:
            log.exception("a batch was not drawn")
            self.error = error

    def _drawn(self, batch: Batch, folder: Path) -> Drawn:
        kinds: tuple[Kind, ...] = ("repelled", "independent") if batch.compare else ("repelled",)
        images: dict[Kind, Sequence[Image.Image]] = {}
        said: dict[Kind, str] = {}
        latents, stopped = torch.zeros(0), False
        for done, kind in enumerate(kinds):
            if stopped:
                break
            images[kind], clean, stopped = self._sample(batch, kind, done, len(kinds), folder)
            said[kind] = measured(images[kind], batch.prompt, self.model)
            if kind == "repelled":
                latents = clean.cpu()
            self.view.show((done + 1) / len(kinds), kind, images[kind])
        return Drawn(batch, images, latents, said, stopped)

    def _sample(
        self, batch: Batch, kind: Kind, done: int, kinds: int, folder: Path
    ) -> tuple[Sequence[Image.Image], Tensor, bool]:
        """Returns pictures, their latents, and whether the run was stopped."""
        heading_for: list[Tensor] = []

        def after_step(end: StepEnd) -> None:
            share = (done + end.taken / end.of) / kinds
            self.view.show(share, kind, self._previews.of(end.denoised))
            if self._stop.is_set() and end.taken < end.of:
                heading_for.append(end.denoised.clone())
                raise Stopped

        try:
            result = sample(
                **batch.arguments(),
                model=self.model,
                repulsion=batch.repulsion(self.model) if kind == "repelled" else None,
                callback_on_step_end=after_step,
                out=folder / kind,
                progress=False,
            )
        except Stopped:
            latents = heading_for[0]
            with torch.no_grad():
                images = to_pil(self.model.decode(latents.to(self.model.device)))
            _write(images, folder / f"{kind}-stopped")
            return images, latents, True
        images = list(result.images)
        self._previews.learn(result.latents, to_pictures(images))
        return images, result.latents, False


def _write(images: Sequence[Image.Image], folder: Path) -> None:
    """Writes pictures into a new folder."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(picture_path(folder, i))
