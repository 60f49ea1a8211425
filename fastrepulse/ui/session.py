"""The batches of one tab: images, chosen examples, and the current run."""

import logging
import threading
import time
import uuid
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
from fastrepulse.files import whole_file
from fastrepulse.metrics.spaces import to_pictures
from fastrepulse.models import Model
from fastrepulse.models.image_files import read_fitted
from fastrepulse.sampling.output import picture_path, to_pil
from fastrepulse.sampling.results import StepEnd
from fastrepulse.sampling.sample import sample
from fastrepulse.ui.batch import Batch
from fastrepulse.ui.measured import measured
from fastrepulse.ui.pca_map import PcaMap
from fastrepulse.ui.previews import Previews

Kind: TypeAlias = Literal["repelled", "independent"]
Pile: TypeAlias = Literal["unlike", "like"]
MAX_PICKED = 64
"""Largest number of images to be like, and of images to be unlike."""

log = logging.getLogger("fastrepulse")


class Stopped(Exception):
    """The user has pressed Stop."""


@dataclass(frozen=True)
class Drawn:
    """A finished or stopped batch; the last images of a stopped one are predictions."""

    batch: Batch
    images: dict[Kind, Sequence[Image.Image]]
    latents: Tensor  # [N, C, H, W], of the repelled images
    measured: dict[Kind, str]
    """The diversity of each kind of images, as Markdown."""
    stopped: bool


@dataclass
class View:
    """Progress of the current run, and its previews and finished images."""

    share: float = 0.0
    began: float | None = None
    """Start time by `time.monotonic`; None while the run waits for other runs."""
    images: dict[Kind, Sequence[Image.Image]] = field(default_factory=dict)
    changes: int = 0

    def show(self, share: float, kind: Kind, images: Sequence[Image.Image] | None) -> None:
        """Updates the progress, and the images unless they are None."""
        self.share = share
        if images is not None:
            self.images = self.images | {kind: images}
        self.changes += 1


class Session:
    """The batches of one tab, each in its own folder.

    One run at a time continues in the worker thread, whether or not the page is open. Several
    sessions share the worker and take turns. `folder` is the parent of the session's folder.
    """

    def __init__(self, model: Model, folder: Path, worker: Executor):
        self.model = model
        self.folder = folder / f"session-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir(parents=True)
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
        """Whether a run is in progress."""
        return self._run is not None and not self._run.done()

    def start(self, batch: Batch) -> None:
        """Starts to draw a batch with the chosen examples, unless another is being drawn."""
        if self.runs:
            raise RuntimeError("a batch is being drawn already")
        # Failed runs count too, because their folders remain
        self._begun += 1
        folder = self.folder / f"batch-{self._begun:03d}"
        batch = replace(batch, unlike=self._keep(folder, "unlike"), like=self._keep(folder, "like"))
        self.view, self.error = View(), None
        self._stop.clear()
        self._run = self._worker.submit(self._draw, batch, folder)

    def stop(self) -> None:
        """Stops the run after its current step and keeps the predicted images."""
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Waits until the run ends, at most this long."""
        if self._run is not None:
            futures.wait([self._run], seconds)

    def pick(self, pile: Pile, image: Image.Image) -> None:
        """Adds an image to be like or unlike; raises ValueError if there are too many."""
        if len(self.picked[pile]) >= MAX_PICKED:
            raise ValueError(f"{pile} must be at most {MAX_PICKED} images")
        self.picked[pile].append(image)

    def pick_file(self, pile: Pile, path: Path) -> None:
        """Adds an image file, cropped to the model's size; raises ValueError if that fails."""
        try:
            image = read_fitted(path, self.model)
        except ValueError as error:
            raise ValueError(f"{path.name} cannot be read: {error}") from None
        self.pick(pile, image)

    def map(self) -> PcaMap | None:
        """Returns a map of all images by the last batch's embedding, or None without images."""
        if not self.drawn:
            return None
        embed = embeddings.build(self.drawn[-1].batch.embedding)
        with torch.no_grad():
            rows = torch.cat([embed(drawn.latents.float()) for drawn in self.drawn])
        return PcaMap.of(
            rows, [image for drawn in self.drawn for image in drawn.images["repelled"]]
        )

    def _keep(self, folder: Path, pile: Pile) -> Path | None:
        """Writes the chosen examples and returns their folder, or None without examples."""
        if not self.picked[pile]:
            return None
        _write(self.picked[pile], folder / pile)
        return folder / pile

    def _draw(self, batch: Batch, folder: Path) -> None:
        try:
            self.view.began = time.monotonic()
            self._previews.restart()
            self.drawn.append(self._draw_batch(batch, folder))
        except Exception as error:
            log.exception("drawing a batch failed")
            self.error = error

    def _draw_batch(self, batch: Batch, folder: Path) -> Drawn:
        kinds: tuple[Kind, ...] = ("repelled", "independent") if batch.compare else ("repelled",)
        images: dict[Kind, Sequence[Image.Image]] = {}
        texts: dict[Kind, str] = {}
        latents, stopped = torch.zeros(0), False
        for done, kind in enumerate(kinds):
            if stopped:
                break
            images[kind], clean, stopped = self._sample(batch, kind, done, len(kinds), folder)
            texts[kind] = measured(images[kind], batch.prompt, self.model)
            if kind == "repelled":
                latents = clean.cpu()
            self.view.show((done + 1) / len(kinds), kind, images[kind])
        return Drawn(batch, images, latents, texts, stopped)

    def _sample(
        self, batch: Batch, kind: Kind, done: int, kinds: int, folder: Path
    ) -> tuple[Sequence[Image.Image], Tensor, bool]:
        """Returns images, their latents, and whether the user stopped the run."""
        predicted: list[Tensor] = []

        def after_step(end: StepEnd) -> None:
            share = (done + end.taken / end.of) / kinds
            self.view.show(share, kind, self._previews.of(end.denoised))
            if self._stop.is_set() and end.taken < end.of:
                predicted.append(end.denoised.clone())
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
            latents = predicted[0]
            with torch.no_grad():
                images = to_pil(self.model.decode(latents.to(self.model.device)))
            _write(images, folder / f"{kind}-stopped")
            return images, latents, True
        images = list(result.images)
        self._previews.learn(result.latents, to_pictures(images))
        return images, result.latents, False


def _write(images: Sequence[Image.Image], folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        with whole_file(picture_path(folder, i)) as partial:
            image.save(partial)
