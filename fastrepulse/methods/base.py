"""What a method that makes particles differ sees at a step, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastrepulse.checks import Watch


@dataclass(frozen=True)
class Share:
    """Which particles of a run are here: all, unless several processes share it.

    Args:
        rows: Their places among all, prompt after prompt.
        count: How many all are.
    """

    rows: Sequence[int]
    count: int

    @classmethod
    def whole(cls, count: int) -> "Share":
        """Returns that of a process which has all particles."""
        return cls(range(count), count)

    @property
    def leads(self) -> bool:
        """Whether this process has the first particle, and writes what there is of all."""
        return self.rows[0] == 0

    def gather(self, own: Tensor) -> Tensor:
        """Returns all particles' rows [prompts * N, ...], of which these are one's own."""
        return own

    def own(self, everyone: Tensor) -> Tensor:
        """Returns one's own of all particles' rows."""
        return everyone

    def total(self, value: Tensor) -> Tensor:
        """Returns the sum of what all processes have."""
        return value

    def part(self) -> tuple[int, int]:
        """Returns the number of this process, and how many there are."""
        return 0, 1


@dataclass(frozen=True)
class Particles:
    """The particles of a run at one step; latents hold prompt after prompt.

    Where several processes share the run, these are the particles of one of them.

    Args:
        denoised: The predicted clean latents x0, [prompts * N, C, H, W].
        noisy: Returns the noisy latents z = x0 + sigma * noise of a slice of the particles.
        sigma: The noise level.
        next_sigma: The one that the step ends at; `sigma` itself where it is not known.
        step: The number of the step, from 0.
        last: Whether the run ends with it.
        num_particles: N of each prompt, those of other processes included.
        seed: From which everything random is drawn.
        micro_batch_size: How many latents go through a network at once.
        device: Where networks run, whether or not the latents lie there.
        measured: Whether somebody looks at what is measured.
        first: Whether the run begins with it, out of nothing but noise.
        share: Which they are among all; by default they are all.
        watch: Notes what has to be finite; whoever made the particles reads it when the step is
            done. By default a new one.
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
    measured: bool = True
    first: bool = False
    share: Share = None  # type: ignore[assignment]  # set below
    watch: Watch = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if self.share is None:
            object.__setattr__(self, "share", Share.whole(len(self.denoised)))
        if self.watch is None:
            object.__setattr__(self, "watch", Watch(self.step))

    def score(self, part: slice) -> Tensor:
        """Returns (x0 - z) / sigma^2 of a slice of the particles, by Tweedie's formula."""
        z, x0 = self.noisy(part).to(self.device), self.denoised[part].to(self.device)
        return (x0.float() - z.float()) / self.sigma**2

    def micro_batches(self, of: slice | None = None) -> list[slice]:
        """Returns the slices that go through a network at once, of all particles or of some."""
        first, last = (of.start, of.stop) if of else (0, len(self.denoised))
        size = self.micro_batch_size
        return [slice(i, min(i + size, last)) for i in range(first, last, size)]

    def prompts(self) -> list[slice]:
        """Returns where each prompt's particles are, of those that are here."""
        prompts = (self.share.rows[-1] // self.num_particles) + 1
        size = len(self.denoised) // prompts
        return [slice(i * size, (i + 1) * size) for i in range(prompts)]


@dataclass(frozen=True)
class PromptForce:
    """What is known of the particles of one prompt at one step, in embedding space.

    Scalar tensors, so that nothing waits for a device.

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
    """What particles do to each other at one step.

    Args:
        change: Takes a slice of the particles to what is added to their score, float32
            [n, C, H, W]; None for nothing.
        prompts: What was measured on the way, for each prompt.
    """

    change: Callable[[slice], Tensor] | None = None
    prompts: list[PromptForce] = field(default_factory=list)

    def measured(self) -> Tensor:
        """Returns the mean over prompts of what was measured, [3], NaN where there are no pairs."""
        if not self.prompts:
            return torch.full((3,), torch.nan, dtype=torch.float32)
        rows = [torch.stack([x.float() for x in vars(each).values()]) for each in self.prompts]
        return torch.stack(rows).mean(dim=0)


class Method:
    """A way to make particles differ: changes their scores, or the text that they are given.

    A subclass is a frozen dataclass of its settings and overrides `push` or `perturb_text`.
    """

    joint = False
    """Whether processes can share a run: it needs no latents but those of its own process."""

    @property
    def acts_on_one(self) -> bool:
        """Whether it does something where a prompt has a single particle."""
        return False

    def guides(self, sigma: float, first: bool) -> bool:
        """Says whether there is guidance at a noise level, in a run that has any.

        Args:
            sigma: The noise level.
            first: Whether the run begins with it, out of nothing but noise.
        """
        return True

    def restarts(self) -> tuple[float, float] | None:
        """Returns noise levels (from, to): at the latter particles go back to the former, once."""
        return None

    def push(self, particles: Particles) -> Push:
        """Returns what to add to the scores at one step."""
        return Push()

    def perturb_text(
        self, text: Tensor, particles: list[int], time: float, step: int, seed: int
    ) -> Tensor:
        """Returns the text embeddings [n, tokens, width] that some particles are given.

        Args:
            text: Those of their prompts.
            particles: The number of each within its prompt.
            time: Of the diffusion, from 1 (noise) to 0 (picture).
            step: The number of the step.
            seed: From which everything random is drawn.
        """
        return text

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns what it remembers from step to step: tensors, and what JSON can hold."""
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Remembers what `state` returned, and nothing else."""

    def settings(self) -> dict[str, Any]:
        """Returns the method's name and its settings as JSON can hold them."""
        raise NotImplementedError
