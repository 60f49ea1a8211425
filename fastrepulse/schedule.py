"""Noise levels, and the conversions between what a model predicts and what a step needs.

Everything here is said in the variance-exploding convention z = x0 + sigma * noise. A scheduler of
the variance-preserving kind holds x = z / sqrt(1 + sigma^2); `NoiseSchedule` converts at the border
(Karras et al. 2022, arXiv:2206.00364, table 1).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels of one run and how its scheduler scales what it holds.

    Args:
        sigmas: Noise level of each step and the one that the last step ends at, T + 1 values,
            decreasing.
        variance_exploding: Whether the scheduler holds z itself rather than z / sqrt(1 + sigma^2).
        prediction_type: What the model predicts: "epsilon", "v_prediction" or "sample".
    """

    sigmas: tuple[float, ...]
    variance_exploding: bool
    prediction_type: str

    @classmethod
    def of(cls, scheduler: Any) -> "NoiseSchedule":
        """Reads the schedule from a diffusers scheduler whose timesteps are set."""
        prediction_type = scheduler.config.prediction_type
        if prediction_type not in PREDICTION_TYPES:
            accepted = ", ".join(PREDICTION_TYPES)
            raise ValueError(f"prediction_type must be one of {accepted}, got {prediction_type!r}")
        if hasattr(scheduler, "sigmas"):
            sigmas = [float(sigma) for sigma in scheduler.sigmas]
        else:
            # Where the last signal is scaled to zero its noise level would be infinite
            alphas = scheduler.alphas_cumprod[scheduler.timesteps.cpu()].clamp_min(2**-24)
            sigmas = [*((1 - alphas) / alphas).sqrt().tolist(), 0.0]
        # Only a scheduler of the variance-exploding kind insists on scaling the model's input
        exploding = hasattr(scheduler, "is_scale_input_called")
        return cls(tuple(sigmas), exploding, prediction_type)

    def noisy(self, sample: Tensor, step: int) -> Tensor:
        """Returns z = x0 + sigma * noise from what the scheduler holds."""
        if self.variance_exploding:
            return sample
        return sample * (1 + self.sigmas[step] ** 2) ** 0.5

    def scheduler_sample(self, z: Tensor, step: int) -> Tensor:
        """Returns what the scheduler holds for z."""
        if self.variance_exploding:
            return z
        return z / (1 + self.sigmas[step] ** 2) ** 0.5

    def denoised(self, z: Tensor, model_output: Tensor, step: int) -> Tensor:
        """Returns the predicted clean latents x0."""
        sigma = self.sigmas[step]
        if self.prediction_type == "epsilon":
            return z - sigma * model_output
        if self.prediction_type == "v_prediction":
            return z / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * model_output
        return model_output

    def score(self, z: Tensor, denoised: Tensor, step: int) -> Tensor:
        """Returns the score (x0 - z) / sigma^2, by Tweedie's formula."""
        return (denoised - z) / self.sigmas[step] ** 2

    def add_to_score(self, model_output: Tensor, change: Tensor, step: int) -> Tensor:
        """Returns the model output that means `score + change` at the same z.

        The predicted noise becomes noise - sigma * change, the clean latents x0 + sigma^2 * change.
        """
        sigma = self.sigmas[step]
        factor = {
            "epsilon": -sigma,
            "v_prediction": -sigma * (1 + sigma**2) ** 0.5,
            "sample": sigma**2,
        }[self.prediction_type]
        return (model_output + factor * change).to(model_output.dtype)
