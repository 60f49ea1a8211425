"""The interface between the sampler and a method: particles in, changes of their scores out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from fastrepulse.checks import FiniteCheck, Window
from fastrepulse.embeddings.base import name_of
from fastrepulse.methods.defaults import RunFacts
from fastrepulse.schedule import score


@dataclass(frozen=True)
class Partition:
    """The particles of one rank among the particles of all ranks.

    This class is for a single rank, which has all particles.

    Args:
        rows: Indices of the particles of this rank, prompt after prompt.
        count: Number of particles of all ranks.
        rank: Index of this rank.
        world_size: Number of ranks.
    """

    rows: Sequence[int]
    count: int
    rank: int = 0
    world_size: int = 1

    def all_gather(self, local: Tensor) -> Tensor:
        """Returns the rows of all particles [prompts * N, ...] from those of each rank."""
        return local

    def local(self, gathered: Tensor) -> Tensor:
        """Returns the rows of this rank's particles from the rows of all particles."""
        return gathered

    def all_reduce(self, value: Tensor) -> Tensor:
        """Returns the sum of a value over all ranks."""
        return value


@dataclass(frozen=True)
class Particles:
    """The particles of one rank at one step; latents hold prompt after prompt.

    Args:
        denoised: The clean prediction x0, [prompts * N, C, H, W].
        noisy: Returns the noisy latents z = x0 + sigma * noise of a slice of the particles.
        sigma: Noise level of the step.
        next_sigma: Noise level that the step ends at; `sigma` itself if it is unknown.
        step: Number of the step, from 0.
        last: Whether this is the last step of the run.
        num_particles: N of each prompt, over all ranks.
        seed: Seed of everything random.
        micro_batch_size: Number of latents that go through a network at once.
        device: Where networks run; the latents may lie elsewhere.
        measure: Whether diagnostics are wanted outside the window too.
        first: Whether this is the first step of a run that starts from pure noise.
        partition: Which particles of the run these are; by default all.
        finite: Collects values that must be finite. The creator of the particles reads it when the
            step is done. By default a new one.
    """

    denoised: Tensor
    noisy: Callable[[slice], Tensor]
    sigma: float
    next_sigma: float
    step: int
    last: bool
    num_particles: int
    seed: int
    micro_batch_size: int = 32
    device: torch.device | str = "cpu"
    measure: bool = True
    first: bool = False
    partition: Partition = None  # type: ignore[assignment]  # set below
    finite: FiniteCheck = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if self.partition is None:
            count = len(self.denoised)
            object.__setattr__(self, "partition", Partition(range(count), count))
        if self.finite is None:
            object.__setattr__(self, "finite", FiniteCheck(self.step))

    def score(self, part: slice) -> Tensor:
        """Returns the score of a slice of the particles."""
        z, x0 = self.noisy(part).to(self.device), self.denoised[part].to(self.device)
        return score(z.float(), x0.float(), self.sigma)

    def micro_batches(self, within: slice | None = None) -> list[slice]:
        """Returns the slices of the micro-batches, of all particles or within a slice."""
        first, last = (within.start, within.stop) if within else (0, len(self.denoised))
        size = self.micro_batch_size
        return [slice(i, min(i + size, last)) for i in range(first, last, size)]

    def prompts(self) -> list[slice]:
        """Returns the slice of each prompt's particles on this rank."""
        prompts = (self.partition.rows[-1] // self.num_particles) + 1
        size = len(self.denoised) // prompts
        return [slice(i * size, (i + 1) * size) for i in range(prompts)]


@dataclass(frozen=True)
class PromptForce:
    """Diagnostics of the particles of one prompt at one step, in embedding space.

    The fields are scalar tensors, so that the host does not wait for the device.

    Args:
        mean_distance: Mean of ||phi_i - phi_j|| over pairs.
        bandwidth: h of the kernel.
        force_norm: Root mean square over particles of ||F_i||.
    """

    mean_distance: Tensor
    bandwidth: Tensor
    force_norm: Tensor


@dataclass(frozen=True)
class Push:
    """What a method adds to the scores at one step.

    Args:
        changes: Yields the change of the score of each micro-batch once, in the order of
            `Particles.micro_batches`, float32 [n, C, H, W]; None for no change.
        prompts: Diagnostics of each prompt.
    """

    changes: Iterator[Tensor] | None = None
    prompts: list[PromptForce] = field(default_factory=list)

    @classmethod
    def of(cls, change: Tensor, particles: Particles) -> "Push":
        """Returns the push of a change of all particles, [prompts * N, C, H, W]."""
        return cls(change[part].to(particles.device) for part in particles.micro_batches())

    def diagnostics(self) -> Tensor:
        """Returns the mean of the diagnostics over prompts, [3]; NaN without pairs."""
        if not self.prompts:
            return torch.full((3,), torch.nan, dtype=torch.float32)
        rows = [torch.stack([x.float() for x in vars(each).values()]) for each in self.prompts]
        return torch.stack(rows).mean(dim=0)


class Method:
    """A way to make particles differ: it changes scores, text embeddings or guidance.

    A subclass is a frozen dataclass of its arguments. It overrides at least one of `push`,
    `perturb_text` and `uses_guidance_at`.
    """

    joint = False
    """Whether several ranks can share a run: the method needs no latents of other ranks."""

    @property
    def acts_on_one(self) -> bool:
        """Whether the method acts where a prompt has a single particle."""
        return False

    def for_run(self, run: RunFacts) -> "Method":
        """Returns the method with all settings that depend on the run."""
        return self

    def uses_guidance_at(self, sigma: float, first: bool) -> bool:
        """Whether the model is guided at a noise level, in a run with a guidance scale above 1.

        Args:
            sigma: Noise level of the step.
            first: Whether the step is the first of a run that starts from pure noise.
        """
        return True

    @property
    def restart_window(self) -> Window | None:
        """Noise levels of the restart: at `low` the particles are renoised to `high`, once."""
        return None

    def push(self, particles: Particles) -> Push:
        """Returns what the method adds to the scores at one step."""
        return Push()

    def perturb_text(
        self, text: Tensor, particles: list[int], time: float, step: int, seed: int
    ) -> Tensor:
        """Returns perturbed text embeddings [n, tokens, width] for some particles.

        Args:
            text: Text embeddings of the particles' prompts, [n, tokens, width].
            particles: Index of each particle within its prompt.
            time: Diffusion time, from 1 (noise) to 0 (image).
            step: Number of the step.
            seed: Seed of everything random.
        """
        return text

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns what the method keeps between steps: tensors, and a record for JSON."""
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Restores what `state` returned."""

    def settings(self) -> dict[str, Any]:
        """Returns the method's name and arguments in a form that JSON can store."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"method": type(self).__name__} | {k: _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    """Returns an argument for JSON: a function by its name, a tensor by its shape."""
    if isinstance(value, Window):
        return value.plain()
    if isinstance(value, Tensor):
        return list(value.shape)
    return name_of(value) if callable(value) else value
