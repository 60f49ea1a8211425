"""The arguments of `sample()` in three groups, checked before any work starts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    check_texts,
    is_integer,
    plain,
)
from fastrepulse.embeddings import names
from fastrepulse.layers.attention import ATTENTIONS
from fastrepulse.methods.base import Method
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.models import SCHEDULERS, Model
from fastrepulse.models.shipped import recommended
from fastrepulse.noise import particle_noise
from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.memory import bytes_of
from fastrepulse.sampling.output import check_space, check_unused, check_writable
from fastrepulse.sampling.results import StepEnd

LONG_PROMPTS = ("cut", "chunks")
STORED = (
    *("num_particles", "num_inference_steps", "guidance_scale", "negative_prompt"),
    *("height", "width", "scheduler", "seed", "long_prompts"),
)
"""Arguments that `Drawing.settings` stores under their own names."""


@dataclass(frozen=True)
class Drawing:
    """What is drawn: the arguments of `sample()` that the images depend on.

    Raises:
        ValueError: If an argument is out of range; names it and what is accepted.
        TypeError: If an argument has a wrong type.
    """

    prompt: str | Sequence[str]
    num_particles: int = 16
    model: Any = None
    repulsion: Method | str | None = Repulsion()  # noqa: RUF009  frozen
    num_inference_steps: int = None  # type: ignore[assignment]  # set below
    guidance_scale: float = None  # type: ignore[assignment]  # set below
    negative_prompt: str | Sequence[str] | None = ""
    height: int | None = None
    width: int | None = None
    scheduler: str = "euler"
    seed: int | None = None
    generator: torch.Generator | None = None
    latents: Tensor | None = None
    corrections: Sequence[Correction] = ()
    long_prompts: Literal["cut", "chunks"] = "cut"

    def __post_init__(self) -> None:
        for name, value in recommended(self.model)._asdict().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.negative_prompt is None:
            object.__setattr__(self, "negative_prompt", "")
        # NumPy's integers overflow
        for name, value in vars(self).items():
            if is_integer(value):
                object.__setattr__(self, name, int(value))
        for name in ("prompt", "negative_prompt"):
            check_texts(name, getattr(self, name))
        counts = len(self.negative_prompts), len(self.prompts)
        if counts[0] != counts[1]:
            raise ValueError(
                f"negative_prompt must be a string or a list of one for each of {counts[1]} "
                f"prompts, got {counts[0]}"
            )
        check_count("num_particles", self.num_particles)
        check_count("num_inference_steps", self.num_inference_steps)
        check_number("guidance_scale", self.guidance_scale)
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        check_choice("long_prompts", self.long_prompts, LONG_PROMPTS)
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
        if not (self.repulsion is None or isinstance(self.repulsion, (str, Method))):
            raise TypeError(
                f"repulsion must be a Repulsion, a name or None, got {self.repulsion!r}"
            )
        # Computed once, here, so that bad values are refused before any work
        _ = self.method, self.noise_seed

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def negative_prompts(self) -> list[str]:
        """The negative prompt of each prompt."""
        if isinstance(self.negative_prompt, str):
            return [self.negative_prompt] * len(self.prompts)
        return list(self.negative_prompt or ())

    @property
    def guided(self) -> bool:
        """Whether the model is guided."""
        return self.guidance_scale > 1

    @property
    def count(self) -> int:
        """The number of particles of all prompts."""
        return len(self.prompts) * self.num_particles

    @cached_property
    def method(self) -> Method | None:
        """The method that makes the particles differ; None for independent samples."""
        if not isinstance(self.repulsion, str):
            return self.repulsion
        check_choice("repulsion, if it is the name of an embedding,", self.repulsion, names())
        return Repulsion(embedding=self.repulsion)

    @property
    def active_method(self) -> Method | None:
        """The method, unless each prompt has a single particle and the method needs several."""
        active = self.method is not None and (self.num_particles > 1 or self.method.acts_on_one)
        return self.method if active else None

    @cached_property
    def noise_seed(self) -> int:
        """The given seed, or one that the generator draws."""
        if self.seed is not None:
            if not is_integer(self.seed):
                raise TypeError(f"seed must be an int or None, got {self.seed!r}")
            if not 0 <= self.seed < 2**63:
                raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
            return self.seed
        device = self.generator.device if self.generator is not None else None
        return int(torch.randint(2**31, (), generator=self.generator, device=device))

    def initial_noise(self, model: Model, rows: Sequence[int]) -> Tensor:
        """Returns unit noise [n, C, H, W] for the particles with these indices.

        Raises:
            ValueError: If the size or the given latents do not fit the model.
        """
        shape = model.latent_shape(self.height, self.width)
        if self.latents is None:
            indices = [row % self.num_particles for row in rows]
            # The particles of one index have the same noise for every prompt
            drawn = sorted(set(indices))
            noise = particle_noise(self.noise_seed, drawn, shape)
            places = {index: place for place, index in enumerate(drawn)}
            return noise[[places[index] for index in indices]]
        if tuple(self.latents.shape) != (self.count, *shape):
            raise ValueError(
                f"latents must be {[self.count, *shape]}, got {list(self.latents.shape)}"
            )
        return self.latents[list(rows)]

    def settings(self, model: Model) -> dict[str, Any]:
        """Returns everything that the images depend on, in a form that JSON can store."""
        _, height, width = model.latent_shape(self.height, self.width)
        resolved = {
            "prompts": self.prompts,
            "guidance_scale": float(self.guidance_scale),
            "height": height * model.vae_scale_factor,
            "width": width * model.vae_scale_factor,
            "seed": self.noise_seed,
            "repulsion": self.method.settings() if self.method else None,
            "corrections": [correction.settings() for correction in self.corrections],
            "latents_given": self.latents is not None,
            "model": model.name,
            "variants": model.variants,
            "prediction_type": model.scheduler_config.get("prediction_type", "epsilon"),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        }
        return plain({name: getattr(self, name) for name in STORED} | resolved)

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Any], model: Any, method: Method | None
    ) -> "Drawing":
        """Returns the drawing that has these settings."""
        return cls(
            settings["prompts"],
            model=model,
            repulsion=method,
            corrections=[Correction(**each) for each in settings["corrections"]],
            **{name: settings[name] for name in STORED},
        )


@dataclass(frozen=True)
class Computing:
    """How the images are computed: they depend on these arguments by rounding at most.

    Raises:
        ValueError: If an argument is out of range; names it and what is accepted.
        TypeError: If an argument has a wrong type.
    """

    micro_batch_size: int | None = None
    memory: int | str | None = None
    compile: bool | Literal["auto"] = "auto"
    attention: Literal["auto", "sdpa", "xformers", "math"] = "auto"
    group: Any = None
    device: str | torch.device | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.micro_batch_size is not None:
            check_count("micro_batch_size", self.micro_batch_size)
        if not isinstance(self.compile, bool) and self.compile != "auto":
            raise ValueError(f"compile must be 'auto', True or False, got {self.compile!r}")
        check_choice("attention", self.attention, ATTENTIONS)
        _ = self.memory_bytes

    @cached_property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else bytes_of(self.memory)


@dataclass(frozen=True)
class Output:
    """Where results and progress go.

    Raises:
        ValueError: If an argument is out of range; names it and what is accepted.
        TypeError: If an argument has a wrong type.
        OSError: If `out` cannot be written or holds the images of another run.
    """

    out: str | Path | None = None
    checkpoint_every: float | None = 60.0
    callback_on_step_end: Callable[[StepEnd], None] | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None:
            check_number("checkpoint_every", self.checkpoint_every)
            if self.checkpoint_every < 0:
                raise ValueError(
                    f"checkpoint_every must be None or at least 0, got {self.checkpoint_every}"
                )
        if not isinstance(self.progress, bool):
            raise TypeError(f"progress must be True or False, got {self.progress!r}")
        callback = self.callback_on_step_end
        if not (callback is None or callable(callback)):
            raise TypeError(f"callback_on_step_end must be a function or None, got {callback!r}")
        if self.out is not None:
            check_path("out", self.out)

    @property
    def folder(self) -> Path | None:
        return None if self.out is None else Path(self.out).expanduser()

    def check_new(self) -> None:
        """Raises if the folder cannot be written or holds another run."""
        if self.folder is not None:
            check_writable(self.folder)
            check_unused(self.folder)

    def check_room(self, drawing: Drawing, model: Model) -> None:
        """Raises if the folder's disk has too little space for the images."""
        if self.folder is not None:
            shape = model.latent_shape(drawing.height, drawing.width)
            pixels = math.prod(shape[1:]) * model.vae_scale_factor**2
            check_space(self.folder, 3 * drawing.count * pixels)
