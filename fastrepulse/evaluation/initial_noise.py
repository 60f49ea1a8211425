"""Initial noise that makes samples differ, as some rivals have it."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


class InitialNoise:
    """Changes the initial noise [N, C, H, W] of a prompt's particles."""

    def __call__(self, noise: Tensor) -> Tensor:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Returns the name and the arguments in a form that JSON can store."""
        return {"noise": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class CoupledNoise(InitialNoise):
    """Couples the noise of the particles: each is Gaussian, and any two correlate by -1 / (N - 1).

        z_i = sqrt(N / (N - 1)) (e_i - mean_j e_j)

    This is the most negative correlation that N equally correlated variables can have (coupled
    sampling: arXiv:2605.11311).
    """

    def __call__(self, noise: Tensor) -> Tensor:
        count = len(noise)
        return (count / (count - 1)) ** 0.5 * (noise - noise.mean(dim=0))


@dataclass(frozen=True)
class PinkNoise(InitialNoise):
    """Raises the low frequencies of the noise: amplitudes fall as f^-exponent (arXiv:2601.00090).

    The variance stays 1. The frequency 0 counts as the lowest frequency above 0.

    Args:
        exponent: At least 0; 0 changes nothing.
    """

    exponent: float

    def __call__(self, noise: Tensor) -> Tensor:
        height, width = noise.shape[-2:]
        vertical, horizontal = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
        frequency = torch.hypot(vertical[:, None], horizontal[None, :])  # [H, W]
        frequency = frequency.clamp_min(1 / max(height, width))
        gain = frequency**-self.exponent
        gain = gain / gain.square().mean().sqrt()
        return torch.fft.ifft2(torch.fft.fft2(noise) * gain).real
