"""CADS: annealed noise on the text embeddings."""

import math
from dataclasses import dataclass

from torch import Tensor

from fastrepulse.methods.base import Method
from fastrepulse.noise import particle_noise


@dataclass(frozen=True)
class CADS(Method):
    """Adds noise to each particle's text embeddings y, less at lower noise levels.

        y_i = sqrt(gamma) y + noise_scale sqrt(1 - gamma) n_i
        gamma = 1 up to time start, 0 from time end, linear in between

    and then scales y_i to the mean and standard deviation of y, blended by `rescale` (Sadat
    et al. 2024, "CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed
    Sampling", arXiv:2310.17347). Time runs from 1 (noise) to 0 (image). n_i is drawn from
    the seed at each step.

    Args:
        noise_scale: s, the size of the noise, at least 0.
        start: tau_1, the time above which the text is noisy, in [0, 1).
        end: tau_2, the time above which the text is pure noise, in (start, 1].
        rescale: psi, in [0, 1].
    """

    noise_scale: float = 0.25
    start: float = 0.6
    end: float = 0.9
    rescale: float = 1.0
    joint = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_scale) and self.noise_scale >= 0):
            raise ValueError(f"noise_scale must be a number of at least 0, got {self.noise_scale}")
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"start and end must be times with 0 <= start < end <= 1, "
                f"got {self.start} and {self.end}"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}")

    @property
    def acts_on_one(self) -> bool:
        return True

    def gamma(self, time: float) -> float:
        """Returns the weight of the text at a time."""
        return min(1.0, max(0.0, (self.end - time) / (self.end - self.start)))

    def perturb_text(
        self, text: Tensor, particles: list[int], time: float, step: int, seed: int
    ) -> Tensor:
        gamma = self.gamma(time)
        if gamma == 1:
            return text
        noise = particle_noise(seed, particles, text.shape[1:], "text", step).to(text)
        noisy = math.sqrt(gamma) * text + self.noise_scale * math.sqrt(1 - gamma) * noise
        dims = (1, 2)
        mean, std = text.mean(dims, keepdim=True), text.std(dims, keepdim=True)
        # Where gamma and noise_scale are 0 the standard deviation is 0
        width = noisy.std(dims, keepdim=True).clamp_min(1e-6)
        scaled = (noisy - noisy.mean(dims, keepdim=True)) / width
        return self.rescale * (scaled * std + mean) + (1 - self.rescale) * noisy
