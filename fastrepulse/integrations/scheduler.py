"""A diffusers scheduler that repels: one line in a pipeline that somebody already has."""

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from fastrepulse.particles import Particles
from fastrepulse.repulsion import Repulsion


class RepulsiveScheduler:
    """Makes a scheduler of diffusers correct every model output by the repulsion of its batch.

        pipe.scheduler = RepulsiveScheduler(pipe.scheduler, "thirds")
        pipe("a potted plant", num_images_per_prompt=16)

    Each step takes the predicted clean latents x0 from the model's output, adds
    sigma^2 * strength * R_i to them (Pondaven 2023; see `Repulsion`), turns the sum back into what
    the model predicts (noise, v, clean latents, or flow velocity) and leaves the rest to the
    scheduler, so that the history of multistep schedulers stays right.

    What is made is a copy of the scheduler, of a class derived from its own: configuration, saving
    and everything else are the scheduler's, and it is saved and loaded as the scheduler alone.

    Args:
        scheduler: Any scheduler of diffusers whose `step` takes one model output, one timestep and
            one sample: Euler, DDIM, DPM-Solver++, UniPC, Heun, their ancestral and flow-matching
            kinds.
        repulsion: A `Repulsion`, or the name of an embedding.
        group_size: How many neighbours in the batch belong to one prompt
            (`num_images_per_prompt`); by default the whole batch does.
        latent_size: Height and width in latent positions, for packed latents [B, tokens, C] that
            are not square.
        seed: From which an embedding draws what is random in it.

    Raises:
        ValueError: If the embedding is unknown, the group size is below 2, or the scheduler's
            prediction type is not known.
    """

    def __new__(
        cls,
        scheduler: Any,
        repulsion: Repulsion | str = "random_cnn",
        *,
        group_size: int | None = None,
        latent_size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> Any:
        if isinstance(repulsion, str):
            repulsion = Repulsion(embedding=repulsion)
        if not isinstance(repulsion, Repulsion):
            raise TypeError(f"repulsion must be a Repulsion or a name, got {repulsion!r}")
        if group_size is not None and group_size < 2:
            raise ValueError(f"group_size must be at least 2, got {group_size}")
        if isinstance(scheduler, _Repels):
            raise ValueError("scheduler must be a plain one, got one that repels already")
        _prediction_type(scheduler)
        repelling = copy.deepcopy(scheduler)
        kind = type(scheduler)
        # diffusers saves a scheduler under its class's name and module
        members = {"__module__": kind.__module__, "step": _repelling_step(kind)}
        repelling.__class__ = type(kind.__name__, (_Repels, kind), members)
        repelling.repulsion = repulsion
        repelling._groups = (group_size, latent_size, seed)
        return repelling


class _Repels:
    """What is put in front of a scheduler's class."""

    repulsion: Repulsion
    timesteps: Tensor
    _groups: tuple[int | None, tuple[int, int] | None, int]

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Makes the plain scheduler, as its own class would."""
        return cls.__mro__[2].from_config(*args, **kwargs)  # type: ignore[attr-defined]

    def _repel(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        group_size, latent_size, seed = self._groups
        size = len(sample) if group_size is None else group_size
        if len(sample) % size:
            raise ValueError(f"group_size must divide the batch of {len(sample)}, got {size}")
        index = _step_number(self, timestep)
        alpha, sigma = _signal_and_noise(self, index)
        level = sigma / alpha
        if size < 2 or not self.repulsion.acts_at(level):
            return model_output
        with torch.no_grad():
            kind = _prediction_type(self)
            x, output = sample.float(), model_output.float()
            norm = (alpha**2 + sigma**2) ** 0.5  # 1 where variance is preserved
            x0 = {
                "epsilon": lambda: (x - sigma * output) / alpha,
                "v_prediction": lambda: alpha * x / norm**2 - sigma * output / norm,
                "sample": lambda: output,
                "flow": lambda: x - sigma * output,
            }[kind]()
            particles = Particles(
                denoised=_unpack(x0, latent_size),
                noisy=lambda: _unpack(x / alpha, latent_size),
                sigma=level,
                next_sigma=_next_level(self, index, level),
                step=index,
                steps=len(self.timesteps),
                num_particles=size,
                seed=seed,
                device=sample.device,
            )
            push = self.repulsion.push(particles)
            if push.change is None:
                return model_output
            change = torch.cat([push.change(group) for group in particles.prompts()])
            moved = level**2 * _pack(change, sample)  # of x0
            per_x0 = {
                "epsilon": -alpha / sigma,
                "v_prediction": -norm / sigma,
                "sample": 1.0,
                "flow": -1 / sigma,
            }[kind]
            return (output + per_x0 * moved).to(model_output.dtype)


def _repelling_step(kind: type) -> Callable[..., Any]:
    """Returns a class's `step` with a corrected model output, of the same signature.

    Pipelines look at the signature to see whether a scheduler takes a generator.
    """

    @wraps(kind.step)  # type: ignore[attr-defined]
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        output = self._repel(model_output, timestep, sample)
        return kind.step(self, output, timestep, sample, *args, **kwargs)  # type: ignore[attr-defined]

    return step


def _prediction_type(scheduler: Any) -> str:
    if "FlowMatch" in type(scheduler).__name__ or scheduler.config.get("use_flow_sigmas"):
        return "flow"
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"scheduler must predict epsilon, v_prediction or sample, got {kind!r}")
    return kind


def _step_number(scheduler: Any, timestep: Any) -> int:
    """Returns the number of the step that a timestep is, in order of the model's calls."""
    if hasattr(scheduler, "_init_step_index"):
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        return scheduler.step_index
    return int((scheduler.timesteps == int(timestep)).nonzero()[0])


def _signal_and_noise(scheduler: Any, index: int) -> tuple[float, float]:
    """Returns alpha and sigma of x = alpha x0 + sigma noise at a step."""
    if hasattr(scheduler, "sigmas") and hasattr(scheduler, "_init_step_index"):
        sigma = float(scheduler.sigmas[index])
        if _prediction_type(scheduler) == "flow":
            # A flow begins at pure noise, which no finite multiple of the signal is
            return max(1 - sigma, 1e-3), sigma
        # Only a scheduler of the variance-exploding kind insists on scaling the model's input
        if hasattr(scheduler, "is_scale_input_called"):
            return 1.0, sigma
        scale = (1 + sigma**2) ** -0.5
        return scale, sigma * scale
    signal = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
    return max(signal, 2**-24) ** 0.5, (1 - signal) ** 0.5


def _next_level(scheduler: Any, index: int, level: float) -> float:
    """Returns the noise level that a step ends at: the next lower one, 0 after the last.

    Schedulers of the second order call the model twice at a level.
    """
    for later in range(index + 1, len(scheduler.timesteps)):
        alpha, sigma = _signal_and_noise(scheduler, later)
        if sigma / alpha < level:
            return sigma / alpha
    return 0.0


def _unpack(latents: Tensor, latent_size: tuple[int, int] | None) -> Tensor:
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


def _pack(change: Tensor, like: Tensor) -> Tensor:
    """Returns a change [B, C, H, W] as the scheduler's samples are laid out."""
    if like.ndim == 4:
        return change
    batch, channels, height, width = change.shape
    patches = change.view(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(like.shape)
