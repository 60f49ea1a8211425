"""What `sample()` is asked for: every argument, checked before any work, and what it comes to."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastrepulse.checks import (
    check_choice,
    check_count,
    check_number,
    check_path,
    check_positive,
    check_texts,
    check_window,
    plain,
    plain_window,
    window_of,
)
from fastrepulse.embeddings import names
from fastrepulse.layers.attention import ATTENTIONS
from fastrepulse.methods.base import Method
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.models import SCHEDULERS, Model
from fastrepulse.noise import particle_noise
from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.memory import bytes_of
from fastrepulse.sampling.output import check_space, check_unused, check_writable
from fastrepulse.sampling.ranks import Ranks
from fastrepulse.sampling.results import StepEnd


@dataclass(frozen=True)
class Request:
    """The arguments of `sample()`, which says what they mean.

    Raises:
        ValueError: If an argument is out of range, named with what is accepted.
        TypeError: If an argument has a wrong type.
        OSError: If `out` cannot be written or holds the pictures of another run.
    """

    prompt: str | Sequence[str]
    num_particles: int
    model: Any
    repulsion: Method | str | None
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str | Sequence[str]
    height: int | None
    width: int | None
    scheduler: str
    seed: int | None
    generator: torch.Generator | None
    latents: Tensor | None
    guidance_window: tuple[float, float]
    corrections: Sequence[Correction]
    shared_until: float | None
    micro_batch_size: int | None
    memory: int | str | None
    compile: bool | Literal["auto"]
    attention: Literal["auto", "sdpa", "xformers", "math"]
    long_prompts: Literal["cut", "chunks"]
    out: str | Path | None
    checkpoint_every: float | None
    callback_on_step_end: Callable[[StepEnd], None] | None
    group: Any
    device: str | torch.device | None
    dtype: torch.dtype | None
    progress: bool

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_numbers()
        self._check_objects()
        if not isinstance(self.compile, bool) and self.compile != "auto":
            raise ValueError(f"compile must be 'auto', True or False, got {self.compile!r}")
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        check_choice("long_prompts", self.long_prompts, ("cut", "chunks"))
        for worked_out_once in ("method", "noise_seed", "memory_bytes"):
            # Here, so that what is wrong is refused before any work
            getattr(self, worked_out_once)
        if self.folder is not None:
            check_writable(self.folder)
            check_unused(self.folder)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def negative_prompts(self) -> list[str]:
        """One for each prompt."""
        if isinstance(self.negative_prompt, str):
            return [self.negative_prompt] * len(self.prompts)
        return list(self.negative_prompt)

    @property
    def count(self) -> int:
        """The number of particles of all prompts."""
        return len(self.prompts) * self.num_particles

    @property
    def folder(self) -> Path | None:
        return None if self.out is None else Path(self.out).expanduser()

    @cached_property
    def method(self) -> Method | None:
        """What makes the particles differ; None for independent samples."""
        if not isinstance(self.repulsion, str):
            return self.repulsion
        check_choice("repulsion, if it is the name of an embedding,", self.repulsion, names())
        return Repulsion(embedding=self.repulsion)

    @property
    def acting_method(self) -> Method | None:
        """The method, unless a single particle has nothing to differ from."""
        acts = self.method is not None and (self.num_particles > 1 or self.method.acts_on_one)
        return self.method if acts else None

    @cached_property
    def noise_seed(self) -> int:
        """The seed given, or one that the generator draws."""
        if self.seed is not None:
            if isinstance(self.seed, bool) or not isinstance(self.seed, int):
                raise TypeError(f"seed must be an int or None, got {self.seed!r}")
            if not 0 <= self.seed < 2**63:
                raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
            return self.seed
        device = self.generator.device if self.generator is not None else None
        return int(torch.randint(2**31, (), generator=self.generator, device=device))

    @cached_property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else bytes_of(self.memory)

    def agreed(self, ranks: Ranks) -> "Request":
        """Returns the request that all processes have, with one seed and one progress bar.

        Raises:
            ValueError: If it is none that several can share.
        """
        if ranks.size == 1:
            return self
        if self.folder is None:
            raise ValueError("out must be a folder that all processes reach, got None")
        if self.num_particles < ranks.size:
            raise ValueError(
                f"num_particles must be at least one for each of {ranks.size} processes, "
                f"got {self.num_particles}"
            )
        if self.method is not None and not self.method.joint:
            raise ValueError(
                "repulsion must be a method that needs the latents of no other process, "
                f"got {type(self.method).__name__}"
            )
        progress = self.progress and ranks.rank == 0
        return replace(self, seed=ranks.first(self.noise_seed), progress=progress)

    def initial_noise(self, model: Model, rows: Sequence[int] | None = None) -> Tensor:
        """Returns unit noise for the particles of some places, or all, [n, C, H, W].

        Raises:
            ValueError: If the size or the latents given do not fit the model.
            OSError: If the disk of `out` has too little space.
        """
        rows = range(self.count) if rows is None else rows
        shape = model.latent_shape(self.height, self.width)
        if self.folder is not None:
            pixels = math.prod(shape[1:]) * model.vae_scale_factor**2
            check_space(self.folder, 3 * self.count * pixels)
        if self.latents is None:
            numbers = [row % self.num_particles for row in rows]
            # That of a number is the same for every prompt
            drawn = sorted(set(numbers))
            noise = particle_noise(self.noise_seed, drawn, shape)
            places = {number: place for place, number in enumerate(drawn)}
            return noise[[places[number] for number in numbers]]
        if tuple(self.latents.shape) != (self.count, *shape):
            raise ValueError(
                f"latents must be {[self.count, *shape]}, got {list(self.latents.shape)}"
            )
        return self.latents[list(rows)]

    def settings(self, model: Model) -> dict[str, Any]:
        """Returns all that the pictures depend on, as JSON can hold it."""
        _, height, width = model.latent_shape(self.height, self.width)
        return plain(
            {
                "prompts": self.prompts,
                "num_particles": self.num_particles,
                "model": model.name,
                "variants": model.variants,
                "prediction_type": model.scheduler_config.get("prediction_type", "epsilon"),
                "repulsion": self.method.settings() if self.method else None,
                "num_inference_steps": self.num_inference_steps,
                "guidance_scale": float(self.guidance_scale),
                "guidance_window": plain_window(self.guidance_window),
                "corrections": [correction.settings() for correction in self.corrections],
                "shared_until": self.shared_until,
                "negative_prompt": self.negative_prompt
                if isinstance(self.negative_prompt, str)
                else self.negative_prompts,
                "long_prompts": self.long_prompts,
                "height": height * model.vae_scale_factor,
                "width": width * model.vae_scale_factor,
                "scheduler": self.scheduler,
                "seed": self.noise_seed,
                "latents_given": self.latents is not None,
                "dtype": str(model.dtype).removeprefix("torch."),
                "device": str(model.device),
            }
        )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **others: Any) -> "Request":
        """Returns the request whose settings these are, without a folder.

        Args:
            settings: What `settings()` returned.
            others: The arguments that they do not hold.
        """
        same = "num_particles num_inference_steps guidance_scale negative_prompt height width"
        same += " scheduler seed shared_until long_prompts"
        return cls(
            prompt=settings["prompts"],
            guidance_window=window_of(settings["guidance_window"]),
            corrections=[Correction.from_settings(each) for each in settings["corrections"]],
            dtype=getattr(torch, settings["dtype"]),
            generator=None,
            latents=None,
            out=None,
            checkpoint_every=None,
            callback_on_step_end=None,
            **{name: settings[name] for name in same.split()},
            **others,
        )

    def _check_texts(self) -> None:
        for name in ("prompt", "negative_prompt"):
            check_texts(name, getattr(self, name))
        counts = len(self.negative_prompts), len(self.prompts)
        if counts[0] != counts[1]:
            raise ValueError(
                f"negative_prompt must be a string or a list of one for each of {counts[1]} "
                f"prompts, got {counts[0]}"
            )

    def _check_numbers(self) -> None:
        check_count("num_particles", self.num_particles)
        check_count("num_inference_steps", self.num_inference_steps)
        if self.micro_batch_size is not None:
            check_count("micro_batch_size", self.micro_batch_size)
        check_number("guidance_scale", self.guidance_scale)
        check_window("guidance_window", self.guidance_window)
        if self.checkpoint_every is not None:
            check_number("checkpoint_every", self.checkpoint_every)
            if self.checkpoint_every < 0:
                raise ValueError(
                    f"checkpoint_every must be None or at least 0, got {self.checkpoint_every}"
                )
        if self.shared_until is not None:
            check_positive("shared_until", self.shared_until, "None or ")

    def _check_objects(self) -> None:
        if not (self.latents is None or isinstance(self.latents, Tensor)):
            raise TypeError(f"latents must be a tensor or None, got {self.latents!r}")
        if not (self.generator is None or isinstance(self.generator, torch.Generator)):
            raise TypeError(f"generator must be a torch.Generator or None, got {self.generator!r}")
        if not isinstance(self.corrections, (list, tuple)) or not all(
            isinstance(correction, Correction) for correction in self.corrections
        ):
            raise TypeError(
                f"corrections must be a sequence of Correction, got {self.corrections!r}"
            )
        if not isinstance(self.progress, bool):
            raise TypeError(f"progress must be True or False, got {self.progress!r}")
        callback = self.callback_on_step_end
        if not (callback is None or callable(callback)):
            raise TypeError(f"callback_on_step_end must be a function or None, got {callback!r}")
        if self.out is not None:
            check_path("out", self.out)
        if not (self.repulsion is None or isinstance(self.repulsion, (str, Method))):
            raise TypeError(
                f"repulsion must be a Repulsion, a name or None, got {self.repulsion!r}"
            )
