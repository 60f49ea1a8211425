"""The repulsion between a pipeline's steps, if its scheduler cannot be replaced."""

from typing import Any

from torch import Tensor

from fastrepulse.integrations.functional import (
    as_repulsion,
    check_group_size,
    for_latents,
    repulsive_force,
)
from fastrepulse.integrations.packing import pack, unpack
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.schedule import check_scheduler, next_level, noise_level, signal_at


class RepulsionCallback:
    """Moves the latents after each step of a diffusers pipeline, as its `callback_on_step_end`.

        repulsion = Repulsion("thirds", 0.3, on="noisy", window=(15, 2))
        repel = RepulsionCallback(repulsion)
        pipe("a potted plant", num_images_per_prompt=16, callback_on_step_end=repel)

    An Euler step from noise level sigma_t to sigma_{t+1} with the corrected score is the plain step
    plus (sigma_t - sigma_{t+1}) strength * r_i(z_t). The callback adds the same to z_t before the
    model sees z_t:

        z_t <- z_t + (sigma_t - sigma_{t+1}) strength * r_i(z_t)    for every t > 0

    If the predicted noise did not depend on z_t, both would be equal except for the first step,
    which the callback cannot push. For other schedulers the callback adds Euler's move.

    Args:
        repulsion: A `Repulsion` on the "noisy" latents, since a callback does not see the clean
            prediction.
        group_size: Number of neighbours in the batch that belong to one prompt
            (`num_images_per_prompt`); by default the whole batch does.
        latent_size: Height and width in latent positions, for packed latents [B, tokens, C] that
            are not square.
        seed: Seed of random embeddings.

    Raises:
        ValueError: If the repulsion is on the "denoised" latents, or the group size is below 2;
            when called, if the scheduler is of a kind that `RepulsiveScheduler` refuses or takes
            several steps at one noise level (Heun, PNDM).
        TypeError: If the repulsion is not a `Repulsion`.
    """

    def __init__(
        self,
        repulsion: Repulsion,
        *,
        group_size: int | None = None,
        latent_size: tuple[int, int] | None = None,
        seed: int = 0,
    ):
        if not isinstance(repulsion, Repulsion):
            raise TypeError(f"repulsion must be a Repulsion, got {repulsion!r}")
        if repulsion.on != "noisy":
            raise ValueError(
                "repulsion must be on='noisy', since a callback does not see the predicted clean "
                f"latents, got on={repulsion.on!r}"
            )
        check_group_size(group_size, repulsion)
        self.repulsion = as_repulsion(repulsion)
        self.group_size = group_size
        self.latent_size = latent_size
        self.seed = seed

    def __call__(
        self, pipe: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the pipeline's variables with the latents moved; pipelines call this."""
        if "latents" not in callback_kwargs:
            raise ValueError(
                "callback_on_step_end_tensor_inputs must hold 'latents', "
                f"got {sorted(callback_kwargs)}"
            )
        times = pipe.scheduler.timesteps
        check_scheduler(pipe.scheduler)
        if len(times.unique()) < len(times):
            raise ValueError(
                "the pipeline's scheduler must take one step at each noise level, "
                f"got {type(pipe.scheduler).__name__}"
            )
        step = int((times == timestep).nonzero()[0]) + 1
        if step < len(times):
            callback_kwargs["latents"] = self._pushed(callback_kwargs["latents"], pipe, step)
        return callback_kwargs

    def _pushed(self, latents: Tensor, pipe: Any, step: int) -> Tensor:
        sigma = noise_level(pipe.scheduler, step)
        following = next_level(pipe.scheduler, step, sigma)
        signal = signal_at(pipe.scheduler, sigma)
        z = unpack(latents.float() / signal, self.latent_size)
        repulsion = for_latents(self.repulsion, z)
        if not repulsion.needs_step_at(sigma):
            return latents
        force = repulsive_force(
            z,
            z,
            sigma,
            repulsion,
            next_sigma=following,
            group_size=self.group_size,
            step=step,
            seed=self.seed,
        )
        nudge = sigma * (sigma - following) * force
        return (latents + signal * pack(nudge, latents)).to(latents.dtype)
