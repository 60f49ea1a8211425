"""Adds the repulsion to what a model predicts at a step of a scheduler."""

from typing import Any

from torch import Tensor

from fastrepulse.integrations.functional import force_on
from fastrepulse.integrations.packing import pack, unpack
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.schedule import (
    HIGHEST_LEVEL,
    denoised,
    next_level,
    noise_level,
    output_change,
    prediction_type,
    signal_at,
)


def repelled_output(
    scheduler: Any,
    step: int,
    model_output: Tensor,
    sample: Tensor,
    repulsion: Repulsion,
    *,
    first: bool = False,
    group_size: int | None = None,
    latent_size: tuple[int, int] | None = None,
    seed: int = 0,
) -> Tensor:
    """Returns the model output of a step after the repulsion.

    Args:
        scheduler: A scheduler of diffusers with its timesteps set.
        step: Number of the step.
        model_output: What the model predicts, after guidance, of the sample's shape.
        sample: The scheduler's noisy latents, [B, C, H, W] or packed [B, tokens, C].
        repulsion: The repulsion of the run.
        first: Whether the step is the first of a run that starts from pure noise.
        group_size: Number of neighbours that repel each other; by default the whole batch.
        latent_size: Height and width in latent positions, for packed latents.
        seed: Seed of random embeddings.

    Raises:
        ValueError: If the model's output holds a learned variance, or the latents or the group size
            do not fit.
    """
    sigma = noise_level(scheduler, step)
    # Pure noise says nothing about an image
    blind = repulsion.on == "noisy" and sigma >= HIGHEST_LEVEL
    if blind or not repulsion.needs_step_at(sigma):
        return model_output
    if model_output.shape != sample.shape:
        raise ValueError(
            f"model_output must be {list(sample.shape)} as the sample is, without a learned "
            f"variance, got {list(model_output.shape)}"
        )
    kind, output = prediction_type(scheduler), model_output.float()
    z = sample.float() / signal_at(scheduler, sigma)
    force = force_on(
        unpack(denoised(z, output, sigma, kind), latent_size),
        unpack(z, latent_size),
        sigma,
        repulsion,
        next_sigma=next_level(scheduler, step, sigma),
        group_size=group_size,
        step=step,
        first=first,
        seed=seed,
    )
    added = output_change(pack(force, sample), sigma, kind)
    return (output + added).to(model_output.dtype)
