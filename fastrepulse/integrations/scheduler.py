"""A diffusers scheduler that repels: one line in an existing pipeline."""

import copy
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from torch import Tensor

from fastrepulse.integrations.functional import (
    as_repulsion,
    check_group_size,
    for_latents,
)
from fastrepulse.integrations.model_output import repelled_output
from fastrepulse.integrations.packing import unpack
from fastrepulse.methods.repulsion import DEFAULT_EMBEDDING, Repulsion
from fastrepulse.schedule import check_scheduler, noise_level, step_number


class RepulsiveScheduler:
    """A copy of a diffusers scheduler that adds the repulsion of the batch to each model output.

        pipe.scheduler = RepulsiveScheduler(pipe.scheduler, "thirds")
        pipe("a potted plant", num_images_per_prompt=16)

    Each step computes the clean prediction x0 from the model output, adds sigma strength * r_i
    (Pondaven 2023; see `Repulsion`), converts the sum back to what the model predicts (noise, v,
    clean latents, or flow velocity) and passes it to the scheduler, so the history of multistep
    schedulers stays correct. There is only the push: guidance is the pipeline's, and there is no
    restart.

    The copy's class is derived from the scheduler's class. Configuration and saving are the
    scheduler's, and it is saved and loaded as the plain scheduler.

    Args:
        scheduler: A scheduler of diffusers whose `step` takes one model output, one timestep and
            one sample: Euler, DDIM, DPM-Solver++, UniPC, Heun, and their ancestral and
            flow-matching kinds. Others are refused by name (`schedule.REFUSED`).
        repulsion: A `Repulsion`, or the name of an embedding.
        group_size: Number of neighbours in the batch that belong to one prompt
            (`num_images_per_prompt`); by default the whole batch does.
        latent_size: Height and width in latent positions, for packed latents [B, tokens, C] that
            are not square.
        seed: Seed of random embeddings.

    Raises:
        ValueError: If the embedding is unknown, the group size is below 2, or the scheduler repels
            already, predicts something unknown, or asks the model between its noise levels; in a
            step, if the group size does not divide the batch, the latents are of another kind, or
            the model's output holds a learned variance.
        TypeError: If the scheduler or the repulsion is something else.
    """

    def __new__(
        cls,
        scheduler: Any,
        repulsion: Repulsion | str = DEFAULT_EMBEDDING,
        *,
        group_size: int | None = None,
        latent_size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> Any:
        repulsion = as_repulsion(repulsion)
        check_group_size(group_size, repulsion)
        if repels(scheduler):
            raise ValueError("scheduler must be a plain one, got one that repels already")
        check_scheduler(scheduler)
        repelling = copy.deepcopy(scheduler)
        kind: Any = type(scheduler)
        repelling.__class__ = _repelling_kind(kind)
        repelling.repulsion = repulsion
        repelling._groups = (group_size, latent_size, seed)
        return repelling


def repels(scheduler: Any) -> bool:
    """Whether a scheduler is a `RepulsiveScheduler`."""
    return isinstance(scheduler, _Repels)


class _Repels:
    """Mixin in front of a scheduler's class."""

    repulsion: Repulsion
    timesteps: Tensor
    _groups: tuple[int | None, tuple[int, int] | None, int]
    _resolved: tuple[Any, Any, Repulsion] = None, None, Repulsion()
    """The timesteps and the shape of the last run, and its repulsion."""

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Makes the plain scheduler, as its own class would."""
        return cls.__mro__[2].from_config(*args, **kwargs)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the plain class, since the derived class is in no module."""
        return _restored, (type(self).__mro__[2], vars(self))

    def _for_run(self, sample: Tensor) -> Repulsion:
        """Returns the repulsion of a run, which is derived once for its timesteps and size."""
        times, shape, repulsion = self._resolved
        if times is not self.timesteps or shape != sample.shape:
            levels = tuple(noise_level(self, i) for i in range(len(self.timesteps)))
            repulsion = for_latents(self.repulsion, unpack(sample, self._groups[1]), levels)
            self._resolved = self.timesteps, sample.shape, repulsion
        return repulsion

    def _repel(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        group_size, latent_size, seed = self._groups
        return repelled_output(
            self,
            step_number(self, timestep),
            model_output,
            sample,
            self._for_run(sample),
            group_size=group_size,
            latent_size=latent_size,
            seed=seed,
        )


@cache
def _repelling_kind(kind: type) -> type:
    """Returns the class of a scheduler that repels."""
    # diffusers saves a scheduler under the name and module of its class
    members = {"__module__": kind.__module__, "step": _repelling_step(kind)}
    return type(kind.__name__, (_Repels, kind), members)


def _restored(kind: type, state: dict[str, Any]) -> Any:
    repelling: Any = object.__new__(_repelling_kind(kind))
    vars(repelling).update(state)
    return repelling


def _repelling_step(kind: type) -> Callable[..., Any]:
    """Returns a class's `step` with a corrected model output, of the same signature.

    Pipelines look at the signature to see whether a scheduler takes a generator.
    """

    @wraps(kind.step)  # type: ignore[attr-defined]
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        output = self._repel(model_output, timestep, sample)
        return kind.step(self, output, timestep, sample, *args, **kwargs)  # type: ignore[attr-defined]

    return step
