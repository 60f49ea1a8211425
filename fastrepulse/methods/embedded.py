"""What the methods share that add the gradient of some potential in an embedding."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.checks import in_window, plain_window
from fastrepulse.methods.base import Method, Particles, PromptForce, Push
from fastrepulse.methods.force import (
    check_settings,
    mean_distance,
    part_duplicates,
    pull_back_forces,
    root_mean_square,
)


@dataclass(frozen=True)
class EmbeddedMethod(Method):
    """Adds strength * J^T G to the scores, G the gradient [N, d] that `gradient` returns.

    The denoiser's Jacobian is taken to be the identity where it is the denoised latents that are
    embedded, as the published codes do.

    Args:
        strength: Weight of the gradient against the score.
        embedding: A name, or a function from latents [N, C, H, W] to embeddings [N, d].
        on: What is embedded: the "noisy" latents, or the "denoised" prediction of the clean ones.
        window: Noise levels (from, to) inside which the method acts.
    """

    strength: float = 1.0
    embedding: str | embeddings.Embed = "latent"
    on: Literal["noisy", "denoised"] = "noisy"
    window: tuple[float, float] = (math.inf, 1.0)
    joint = True

    def __post_init__(self) -> None:
        check_settings(self.embedding, self.strength, self.on, self.window)

    def gradient(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what pushes the embeddings [N, d] of a prompt apart, and the bandwidth."""
        raise NotImplementedError

    def push(self, particles: Particles) -> Push:
        if not in_window(particles.sigma, self.window):
            return Push()
        pull_back, prompts = self.pulled_back(particles)
        return Push(lambda part: self.strength * pull_back(part), prompts)

    def pulled_back(
        self, particles: Particles
    ) -> tuple[Callable[[slice], Tensor], list[PromptForce]]:
        """Returns J^T G as a function of a slice of the particles, and what was measured."""

        def law(own: Tensor, prompt: int) -> tuple[Tensor, PromptForce]:
            force, bandwidth = self.gradient(part_duplicates(own, particles.seed))
            return force, PromptForce(mean_distance(own), bandwidth, root_mean_square(force))

        embedding = embeddings.build(self.embedding)
        return pull_back_forces(embedding, self.on, particles, law)

    def settings(self) -> dict[str, Any]:
        return settings_of(self)


def settings_of(method: Any) -> dict[str, Any]:
    """Returns the name and the fields of a method as JSON can hold them."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return plain_window(value)
        if isinstance(value, Tensor):
            return list(value.shape)
        return embeddings.name_of(value) if callable(value) else value

    fields = {name: getattr(method, name) for name in method.__dataclass_fields__}
    return {"method": type(method).__name__} | {k: plain(v) for k, v in fields.items()}
