"""Text noise: noise on each particle's text embeddings, in the first steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastrepulse.checks import check_number
from fastrepulse.methods.base import Method
from fastrepulse.noise import particle_noise


@dataclass(frozen=True)
class TextNoise(Method):
    """Adds noise to each particle's text embeddings y in the first steps.

        y_i = y + strength std(y) m_i u_i

    u_i is uniform in [-1, 1]; m_i is 1 for a random share of the entries and 0 for the others. Both
    are drawn once per particle (after the ComfyUI node SeedVarianceEnhancer, whose strength is in
    absolute units). The later steps use the clean text embeddings and so return to the prompt.

    Args:
        strength: Size of the noise in standard deviations of the text embeddings, at least 0.
        share: Share of the entries that are noisy, in [0, 1].
        until: Time below which the text is clean, in [0, 1); time runs from 1 (noise) to 0 (image).
    """

    strength: float = 1.0
    share: float = 0.5
    until: float = 0.8
    joint = True

    def __post_init__(self) -> None:
        check_number("strength", self.strength)
        if self.strength < 0:
            raise ValueError(f"strength must be at least 0, got {self.strength}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self.share}")
        if not 0 <= self.until < 1:
            raise ValueError(f"until must be a time in [0, 1), got {self.until}")

    @property
    def acts_on_one(self) -> bool:
        return True

    def perturb_text(
        self, text: Tensor, particles: list[int], time: float, step: int, seed: int
    ) -> Tensor:
        if time < self.until:
            return text
        # The same noise at every step; the normal distribution function makes it uniform
        noise, chosen = (
            torch.special.ndtr(particle_noise(seed, particles, text.shape[1:], "text", number))
            for number in (0, 1)
        )
        noise = torch.where(chosen < self.share, 2 * noise - 1, 0.0).to(text)
        return text + self.strength * text.std((1, 2), keepdim=True) * noise
