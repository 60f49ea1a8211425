"""The common part of methods that add the gradient of a potential in an embedding."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.checks import Window, check_choice, check_number
from fastrepulse.methods.base import Method, Particles, PromptForce, Push
from fastrepulse.methods.diagnostics import mean_distance, root_mean_square
from fastrepulse.methods.duplicates import separate_duplicates
from fastrepulse.methods.pull_back import On, pull_back_forces


@dataclass(frozen=True)
class EmbeddedMethod(Method):
    """Adds strength * J^T G to the scores, where G [N, d] is what `gradient` returns.

    If the denoised latents are embedded, the denoiser's Jacobian is taken to be the identity, as in
    the published codes.

    Args:
        strength: Weight of the gradient relative to the score.
        embedding: A name, or a function from latents [N, C, H, W] to embeddings [N, d].
        on: What is embedded: the "noisy" latents, or the "denoised" prediction of the clean ones.
        window: Noise levels (high, low) between which the method acts.
    """

    strength: float = 1.0
    embedding: str | embeddings.Embed = "latent"
    on: On = "noisy"
    window: Window | tuple[float, float] = (math.inf, 1.0)
    joint = True

    def __post_init__(self) -> None:
        check_embedding(self)
        object.__setattr__(self, "window", Window.of("window", self.window))

    def gradient(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the direction in which the embeddings [N, d] of a prompt move, and h."""
        raise NotImplementedError

    def push(self, particles: Particles) -> Push:
        if particles.sigma not in self.window:
            return Push()

        def force_fn(rows: Tensor, prompt: int) -> tuple[Tensor, PromptForce]:
            force, bandwidth = self.gradient(separate_duplicates(rows, particles.seed))
            return force, PromptForce(mean_distance(rows), bandwidth, root_mean_square(force))

        embedding = embeddings.build(self.embedding)
        directions, prompts = pull_back_forces(embedding, self.on, particles, force_fn)
        return Push((self.strength * direction for direction in directions), prompts)


def check_embedding(method: Any) -> None:
    """Checks `embedding`, `strength` and `on` of a method."""
    embeddings.build(method.embedding)
    check_number("strength", method.strength)
    check_choice("on", method.on, ("noisy", "denoised"))
