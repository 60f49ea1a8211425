"""Noise levels, and conversions between model outputs and the clean prediction.

All functions use the variance-exploding convention z = x0 + sigma * noise (Karras et al.
2022, arXiv:2206.00364, table 1). A scheduler holds x = signal * z: the signal is 1 for
variance-exploding schedulers, 1 / sqrt(1 + sigma^2) for variance-preserving ones, and
1 / (1 + sigma) for flow matching, where x = (1 - s) x0 + s noise.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrepulse.checks import Window

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")
HIGHEST_LEVEL = 2.0**12
"""The noise level of pure noise, which would be infinite."""

REFUSED = {
    "asks the model between its noise levels": ("KDPM2", "DPMSolverSDE"),
    "scales what the model predicts": ("EDM", "CosineDPM", "CMStochastic", "CogVideoX"),
    "goes from pictures to noise": ("Inverse",),
    "takes steps up, or other arguments": ("RePaint", "UnCLIP", "KarrasVe", "ScoreSde"),
    "has noise levels of another kind": (
        "EulerAncestralRF",
        "FlowMapEuler",
        "MiniMaxH3",
    ),
}
"""Refused schedulers: the reason, and parts of their class names."""


def check_scheduler(scheduler: Any) -> None:
    """Raises unless a scheduler's noise levels and prediction type are supported."""
    name = type(scheduler).__name__
    if not hasattr(scheduler, "step") or not hasattr(scheduler, "config"):
        raise TypeError(f"scheduler must be a scheduler of diffusers, got {name}")
    prediction_type(scheduler)
    reasons = [why for why, parts in REFUSED.items() if any(part in name for part in parts)]
    if not (hasattr(scheduler, "sigmas") or hasattr(scheduler, "alphas_cumprod")):
        reasons.append("has no noise levels")
    if scheduler.config.get("invert_sigmas"):
        reasons.append("counts its noise levels upwards (invert_sigmas)")
    if reasons:
        raise ValueError(
            "scheduler must ask for one model output at each of its noise levels "
            f"(Euler, DDIM, DPM-Solver++, UniPC, Heun, ...), got {name}, which {reasons[0]}"
        )


def prediction_type(scheduler: Any) -> str:
    """Returns what the model predicts, one of `PREDICTION_TYPES`."""
    if _is_flow(scheduler):
        return "flow"
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES[:3]:
        accepted = ", ".join(PREDICTION_TYPES[:3])
        raise ValueError(f"prediction_type must be one of {accepted}, got {kind!r}")
    return kind


def is_variance_exploding(scheduler: Any) -> bool:
    """Whether a scheduler with its timesteps set holds z itself and scales model inputs."""
    if _is_flow(scheduler) or not hasattr(scheduler, "scale_model_input"):
        return False
    ones = torch.ones(1, dtype=torch.float32, device=scheduler.timesteps.device)
    # On a copy, since schedulers record the step of a call
    scaled = copy.copy(scheduler).scale_model_input(ones, scheduler.timesteps[0])
    return not torch.equal(scaled, ones)


def step_number(scheduler: Any, timestep: Any) -> int:
    """Returns the number of the step that a scheduler will take at a timestep."""
    if not hasattr(scheduler, "_init_step_index"):
        return int((scheduler.timesteps == timestep).nonzero()[0])
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    return scheduler.step_index


def noise_level(scheduler: Any, step: int) -> float:
    """Returns sigma of z = x0 + sigma * noise before a step, at most `HIGHEST_LEVEL`."""
    if hasattr(scheduler, "sigmas"):
        sigma = float(scheduler.sigmas[step])
        if not _is_flow(scheduler):
            return min(sigma, HIGHEST_LEVEL)
        noise, signal = sigma, 1 - sigma
    else:
        squared = float(scheduler.alphas_cumprod[int(scheduler.timesteps[step])])
        noise, signal = (1 - squared) ** 0.5, squared**0.5
    return noise / max(signal, noise / HIGHEST_LEVEL)


def signal_at(scheduler: Any, sigma: float) -> float:
    """Returns the signal of a scheduler's x = signal * z at a noise level."""
    if _is_flow(scheduler):
        return 1 / (1 + sigma)
    return 1.0 if is_variance_exploding(scheduler) else (1 + sigma**2) ** -0.5


def next_level(scheduler: Any, step: int, sigma: float) -> float:
    """Returns the noise level that a step from a level ends at, 0 after the last.

    Second-order schedulers visit each level twice.
    """
    later = (noise_level(scheduler, i) for i in range(step + 1, len(scheduler.timesteps)))
    return next((level for level in later if level < sigma), 0.0)


def denoised(z: Tensor, model_output: Tensor, sigma: float, kind: str) -> Tensor:
    """Returns the clean x0 that a model output of a prediction type implies at z."""
    if kind == "epsilon":
        return z - sigma * model_output
    if kind == "v_prediction":
        return z / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * model_output
    if kind == "flow":
        return (z - sigma * model_output) / (1 + sigma)
    return model_output


def score(z: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """Returns the score (x0 - z) / sigma^2, by Tweedie's formula."""
    return (x0 - z) / sigma**2


def output_change(change: Tensor, sigma: float, kind: str) -> Tensor:
    """Returns what to add to a model output so that its score grows by `change` at the same z.

    The predicted noise becomes noise - sigma * change, the clean x0 + sigma^2 * change.
    """
    factor = {
        "epsilon": -sigma,
        "v_prediction": -sigma * (1 + sigma**2) ** 0.5,
        "flow": -sigma * (1 + sigma),
        "sample": sigma**2,
    }[kind]
    return factor * change


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels of one run and the signal of its scheduler.

    Args:
        sigmas: Noise level of each step and the one that the last step ends at, T + 1 values,
            decreasing.
        signals: The signal of x = signal * z before each step.
        prediction_type: What the model predicts, one of `PREDICTION_TYPES`.
    """

    sigmas: tuple[float, ...]
    signals: tuple[float, ...]
    prediction_type: str

    @classmethod
    def of(cls, scheduler: Any) -> "NoiseSchedule":
        """Reads the schedule from a diffusers scheduler whose timesteps are set."""
        count = len(scheduler.timesteps)
        sigmas = [noise_level(scheduler, step) for step in range(count)]
        signals = tuple(signal_at(scheduler, sigma) for sigma in sigmas)
        ends = hasattr(scheduler, "sigmas") and len(scheduler.sigmas) > count
        sigmas.append(noise_level(scheduler, count) if ends else 0.0)
        return cls(tuple(sigmas), signals, prediction_type(scheduler))

    def noisy(self, sample: Tensor, step: int) -> Tensor:
        """Returns z = x0 + sigma * noise from the scheduler's x."""
        signal = self.signals[step]
        return sample if signal == 1 else sample / signal

    def scheduler_sample(self, z: Tensor, step: int) -> Tensor:
        """Returns the scheduler's x for z."""
        signal = self.signals[step]
        return z if signal == 1 else z * signal

    def jump(self, restart: Window | None, order: int = 1) -> tuple[int, int] | None:
        """Returns the step before which a restart renoises, and the step that it goes back to.

        Args:
            restart: Noise levels of the restart; None for no restart.
            order: Number of steps that a scheduler takes from one noise level to the next.
        """
        if restart is None:
            return None
        count = len(self.signals)

        def first_at(level: float) -> int:
            starts = range(0, count, order)
            return next((step for step in starts if self.sigmas[step] <= level), count)

        low, high = first_at(restart.low), first_at(restart.high)
        return (low, high) if high < low < count else None

    def renoised(self, sample: Tensor, noise: Tensor, step: int, earlier: int) -> Tensor:
        """Returns the scheduler's x of an earlier step, from that of a step and unit noise."""
        added = math.sqrt(self.sigmas[earlier] ** 2 - self.sigmas[step] ** 2)
        z = self.noisy(sample, step)
        return self.scheduler_sample((z + added * noise.to(z)).to(sample.dtype), earlier)

    def denoised(self, z: Tensor, model_output: Tensor, step: int) -> Tensor:
        """Returns the predicted clean latents x0."""
        return denoised(z, model_output, self.sigmas[step], self.prediction_type)

    def score(self, z: Tensor, x0: Tensor, step: int) -> Tensor:
        """Returns the score at a step."""
        return score(z, x0, self.sigmas[step])

    def add_to_score(self, model_output: Tensor, change: Tensor, step: int) -> Tensor:
        """Returns the model output whose score is larger by `change` at the same z."""
        added = output_change(change, self.sigmas[step], self.prediction_type)
        return (model_output + added).to(model_output.dtype)


def _is_flow(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas"))
