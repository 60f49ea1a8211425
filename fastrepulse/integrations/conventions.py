"""How diffusers' schedulers hold latents: x = alpha x0 + sigma noise, spatial or packed."""

from typing import Any

from torch import Tensor

LEAST_SIGNAL = 2**-12
"""What alpha is taken to be where there is none, so that noise levels stay finite."""

ELSEWHERE = ("KDPM2", "DPMSolverSDE", "EDM", "CosineDPM", "CMStochastic", "CogVideoX")
"""Parts of the names of schedulers that ask the model between their noise levels, or scale it."""


def check_scheduler(scheduler: Any) -> None:
    """Raises unless a scheduler's noise levels and prediction type are known here."""
    name = type(scheduler).__name__
    if not hasattr(scheduler, "step") or not hasattr(scheduler, "config"):
        raise TypeError(f"scheduler must be a scheduler of diffusers, got {name}")
    prediction_type(scheduler)
    known = hasattr(scheduler, "sigmas") or hasattr(scheduler, "alphas_cumprod")
    if not known or any(part in name for part in ELSEWHERE):
        raise ValueError(
            "scheduler must ask for one model output at each of its noise levels "
            f"(Euler, DDIM, DPM-Solver++, UniPC, Heun, ...), got {name}"
        )


def prediction_type(scheduler: Any) -> str:
    """Returns what the model predicts: "epsilon", "v_prediction", "sample" or "flow"."""
    if _is_flow(scheduler):
        return "flow"
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"scheduler must predict epsilon, v_prediction or sample, got {kind!r}")
    return kind


def step_number(scheduler: Any, timestep: Any) -> int:
    """Returns which step a scheduler is about to take."""
    if not hasattr(scheduler, "_init_step_index"):
        return int((scheduler.timesteps == timestep).nonzero()[0])
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    return scheduler.step_index


def signal_and_noise(scheduler: Any, step: int) -> tuple[float, float]:
    """Returns alpha and sigma of x = alpha x0 + sigma noise before a step."""
    if hasattr(scheduler, "sigmas"):
        sigma = float(scheduler.sigmas[step])
        if _is_flow(scheduler):
            return max(1 - sigma, LEAST_SIGNAL), sigma
        # Only a scheduler of the variance-exploding kind starts from noise that is not of unit size
        if float(scheduler.init_noise_sigma) != 1:
            return 1.0, sigma
        alpha = (1 + sigma**2) ** -0.5
        return alpha, sigma * alpha
    signal = float(scheduler.alphas_cumprod[int(scheduler.timesteps[step])])
    return max(signal**0.5, LEAST_SIGNAL), (1 - signal) ** 0.5


def next_level(scheduler: Any, step: int, level: float) -> float:
    """Returns the noise level sigma / alpha that a step from a level ends at, 0 after the last.

    Schedulers of the second order are at a level twice.
    """
    for later in range(step + 1, len(scheduler.timesteps)):
        alpha, sigma = signal_and_noise(scheduler, later)
        if sigma / alpha < level:
            return sigma / alpha
    return 0.0


def _is_flow(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas"))


def unpack(latents: Tensor, latent_size: tuple[int, int] | None) -> Tensor:
    """Returns [B, C, H, W] of latents that are that already or packed [B, (H/2)(W/2), 4 C]."""
    if latents.ndim == 4:
        return latents
    if latents.ndim != 3:
        raise ValueError(f"latents must be [B, C, H, W] or packed, got {list(latents.shape)}")
    batch, tokens, width = latents.shape
    side = round(tokens**0.5)
    height, breadth = latent_size if latent_size else (2 * side, 2 * side)
    if height * breadth != 4 * tokens or width % 4:
        raise ValueError(f"latent_size must be (H, W) with H W = {4 * tokens}, got {latent_size}")
    patches = latents.view(batch, height // 2, breadth // 2, width // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, width // 4, height, breadth)


def pack(change: Tensor, like: Tensor) -> Tensor:
    """Returns a change [B, C, H, W] as the scheduler's samples are laid out."""
    if like.ndim == 4:
        return change
    batch, channels, height, width = change.shape
    patches = change.view(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(like.shape)
