"""A bank: embeddings of earlier particles, and of images, to repel from or to be attracted to."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrepulse.embeddings import Embedding
from fastrepulse.methods.base import Particles
from fastrepulse.models import Model, encode_folder
from fastrepulse.safetensors_record import load_record, save_record

VERSION = 2
"""Version of the file format."""
ATTRACTION = 1.0
"""Total weight of the attracting images, relative to all particles of a prompt."""
RUN = "run."
"""Prefix of the keys of the current run."""


log = logging.getLogger("fastrepulse")


@dataclass
class _Run:
    """What the current run will add."""

    kind: dict[str, Any]
    seed: int
    sigmas: dict[int, float] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)

    @property
    def reached(self) -> float:
        """The noise level of the last step."""
        return self.sigmas[max(self.sigmas)]

    def goes_on(self, kind: dict[str, Any], seed: int, step: int) -> bool:
        """Whether a step can belong to this run."""
        return self.kind == kind and self.seed == seed and step >= max(self.sigmas)


class Bank:
    """The embeddings of earlier particles at every noise level, and images to repel from.

    Four batches of four with one bank repel each other in the embedding as a batch of sixteen
    would, except that earlier batches do not see later ones:

        repulsion = Repulsion(bank=Bank())
        for seed in range(4):
            sample("a potted plant", 4, repulsion=repulsion, seed=seed)

    All runs need the same noise levels, size, embedding and number of prompts. Particles of the
    first prompt repel from earlier particles of the first prompt, and so on. A run is added when
    its last step is done; a run that ends earlier is added by `close`.

    Args:
        pictures: Clean latents [M, C, H, W] to repel from in every run, for instance from
            `fastrepulse.models.encode_folder`.
        like: Clean latents [M, C, H, W] that attract the particles in every run, while the
            particles still repel each other. Together they weigh as much as the particles of a
            prompt.

    Raises:
        ValueError: If `pictures` or `like` is not [M >= 1, C, H, W].
    """

    def __init__(self, pictures: Tensor | None = None, like: Tensor | None = None):
        for name, given in (("pictures", pictures), ("like", like)):
            if given is not None and (given.ndim != 4 or len(given) == 0):
                raise ValueError(f"{name} must be [M, C, H, W], got {tuple(given.shape)}")
        self.pictures = pictures
        self.like = like
        self.seed: int | None = None
        self._kind: dict[str, Any] | None = None
        self._sigmas: dict[int, float] = {}
        self._levels: dict[str, Tensor] = {}
        self._run: _Run | None = None
        # Embeddings of the repelling and of the attracting images
        self._embedded: list[Tensor | None] = [None, None]

    @classmethod
    def of_folders(
        cls,
        model: Model,
        pictures: str | Path | None = None,
        like: str | Path | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> "Bank":
        """Returns a bank of the images in folders, as `models.encode_folder` reads them.

        Args:
            model: The model that encodes the images.
            pictures: A folder of images to repel from, or None.
            like: A folder of images to be attracted to, or None.
            height: Height in pixels; by default the model's own.
            width: Width in pixels; by default the model's own.
        """
        folders = {"pictures": pictures, "like": like}
        given = {name: folder for name, folder in folders.items() if folder is not None}
        return cls(
            **{name: encode_folder(path, model, height, width) for name, path in given.items()}
        )

    def __len__(self) -> int:
        """The number of earlier particles, of the prompt that has most."""
        return max((len(rows) for rows in self._levels.values()), default=0)

    def open(self, particles: Particles, name: str, on: str, embedding: Embedding) -> None:
        """Prepares the bank for a step.

        Raises:
            ValueError: If the run's embedding, size, prompts or noise levels differ from the
                bank's.
        """
        kind = {
            "embedding": name,
            "on": on,
            "latents": list(particles.denoised.shape[1:]),
            "prompts": len(particles.prompts()),
        }
        if self._kind not in (None, kind):
            assert self._kind is not None
            unlike = {k: (self._kind[k], kind[k]) for k in kind if self._kind[k] != kind[k]}
            raise ValueError(
                "bank must be of the same embedding, size and number of prompts, got "
                + ", ".join(f"{k} {has!r} and a run of {now!r}" for k, (has, now) in unlike.items())
            )
        level = self._sigmas.get(particles.step, particles.sigma)
        if not math.isclose(level, particles.sigma, rel_tol=1e-3):
            raise ValueError(
                f"bank must be of the same noise levels, got one of {level:.4g} at step "
                f"{particles.step} and a run of {particles.sigma:.4g}"
            )
        if self.pictures is not None or self.like is not None:
            self._embed_pictures(particles, on, embedding)
        # An earlier step, another seed or another kind of run means that the last run was stopped
        if self._run is None or not self._run.goes_on(kind, particles.seed, particles.step):
            self._warn_of_unfinished()
            self._run = _Run(kind, particles.seed)
        self._run.sigmas[particles.step] = particles.sigma

    def join(self, prompt: int, step: int, own: Tensor) -> tuple[Tensor, Tensor | None]:
        """Records a prompt's embeddings [N, d] at a step, and appends the bank's to them.

        Returns:
            Embeddings [N + M, d] and their weights [N + M], below 0 for those that attract; the
            weights are None if the bank has nothing at this step.
        """
        assert self._run is not None
        self._run.rows[_key(prompt, step)] = own
        unlike, like = self._embedded
        rows, weights = [own], [own.new_ones(len(own))]
        for part, weight in (
            (self._levels.get(_key(prompt, step)), 1.0),
            (unlike, 1.0),
            (like, -ATTRACTION * len(own) / (1 if like is None else len(like))),
        ):
            if part is not None:
                rows.append(part.to(own))
                weights.append(own.new_full(part.shape[:1], weight))
        return (torch.cat(rows), torch.cat(weights)) if len(rows) > 1 else (own, None)

    def close(self) -> float | None:
        """Adds the current run up to the noise level that it has reached, and returns that level.

        The last step of a run does so by itself. Call it after a run that ends earlier, as with a
        pipeline's `denoising_end`. Without a run the bank stays as it is, and None is returned.
        """
        run, self._run = self._run, None
        if run is None:
            return None
        self._kind = run.kind
        self.seed = run.seed if self.seed is None else self.seed
        self._sigmas = run.sigmas | self._sigmas
        for key, rows in run.rows.items():
            earlier = self._levels.get(key)
            self._levels[key] = rows if earlier is None else torch.cat([earlier.to(rows), rows])
        return run.reached

    def _warn_of_unfinished(self) -> None:
        if self._run is not None:
            log.warning(
                "the bank leaves out a run that ended at noise level %s, before its last step: "
                "bank.close() after such a run adds it",
                f"{self._run.reached:.3g}",
            )

    def save(self, path: str | Path) -> None:
        """Writes the bank to a safetensors file; missing folders are made.

        A run that has not done its last step is left out, with a warning; see `close`.
        """
        self._warn_of_unfinished()
        save_record(Path(path).expanduser(), *self._kept())

    @classmethod
    def load(cls, path: str | Path) -> "Bank":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or not a bank of this version.
        """
        tensors, record = load_record(Path(path).expanduser())
        if not isinstance(record, dict) or record.get("bank") != VERSION:
            raise ValueError(f"bank file {str(path)!r} is not one of this version")
        bank = cls()
        bank.restore(tensors, record)
        return bank

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the bank with its current run: tensors, and a record for JSON."""
        tensors, record = self._kept()
        if self._run is None:
            return tensors, record
        rows = {f"{RUN}{key}": rows for key, rows in self._run.rows.items()}
        run = {"kind": self._run.kind, "seed": self._run.seed, "sigmas": self._run.sigmas}
        return tensors | rows, record | {"run": run}

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self._levels = {key: rows for key, rows in tensors.items() if not key.startswith(RUN)}
        self.pictures = self._levels.pop("pictures", None)
        self.like = self._levels.pop("like", None)
        self._kind, self.seed = record["kind"], record["seed"]
        self._sigmas = _by_step(record["sigmas"])
        self._run, self._embedded = None, [None, None]
        if "run" in record:
            run = record["run"]
            keys = (key for key in tensors if key.startswith(RUN))
            rows = {key.removeprefix(RUN): tensors[key] for key in keys}
            self._run = _Run(run["kind"], run["seed"], _by_step(run["sigmas"]), rows)

    def _kept(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the finished runs and the images."""
        given = {"pictures": self.pictures, "like": self.like}
        pictures = {name: kept for name, kept in given.items() if kept is not None}
        record = {"bank": VERSION, "kind": self._kind, "seed": self.seed, "sigmas": self._sigmas}
        return {**self._levels, **pictures}, record

    def _embed_pictures(self, particles: Particles, on: str, embedding: Embedding) -> None:
        if on != "denoised":
            raise ValueError("a bank with images needs on='denoised', got 'noisy'")
        embedding.prepare(particles.seed if self.seed is None else self.seed, particles.step, 0.0)
        for place, pictures in enumerate((self.pictures, self.like)):
            if pictures is None:
                continue
            if pictures.shape[1:] != particles.denoised.shape[1:]:
                raise ValueError(
                    f"images of the bank must be {list(particles.denoised.shape[1:])} like the "
                    f"latents, got {list(pictures.shape[1:])}"
                )
            parts = pictures.to(particles.device).float().split(particles.micro_batch_size)
            self._embedded[place] = torch.cat([embedding(part) for part in parts]).detach()


def _by_step(sigmas: dict[Any, float]) -> dict[int, float]:
    """Returns noise levels by step; JSON has turned the steps into strings."""
    return {int(step): sigma for step, sigma in sigmas.items()}


def _key(prompt: int, step: int) -> str:
    return f"{prompt}.{step}"
