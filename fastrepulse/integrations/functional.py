"""The repulsion for loops of your own: functions of latents and noise levels.

All functions use the variance-exploding convention z = x0 + sigma * noise.
"""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastrepulse.checks import check_number
from fastrepulse.methods.base import Particles
from fastrepulse.methods.defaults import RunFacts
from fastrepulse.methods.repulsion import AUTO, DEFAULT_EMBEDDING, Repulsion
from fastrepulse.torch_settings import undisturbed

PUSH_ALONE: dict[str, Any] = {"pause": None, "restart": None}
"""Arguments of a `Repulsion` that only pushes."""


def repulsive_force(
    denoised: Tensor,
    z: Tensor,
    sigma: float,
    repulsion: Repulsion | str = DEFAULT_EMBEDDING,
    *,
    next_sigma: float | None = None,
    group_size: int | None = None,
    step: int = 0,
    seed: int = 0,
) -> Tensor:
    """Returns strength * r_i / sigma, which a `Repulsion` adds to the score.

    Args:
        denoised: The predicted clean latents x0, [B, C, H, W].
        z: The noisy latents, of the same shape.
        sigma: Their noise level, above 0.
        repulsion: A `Repulsion`, or the name of an embedding.
        next_sigma: The noise level that the step ends at, 0 for the last step. It bounds the force
            and tells a bank that the run is done. Without it long steps may leave noise.
        group_size: Number of neighbours in the batch that belong to one prompt and repel each
            other, at least 2, or 1 with a bank; by default the whole batch.
        step: Number of the step, for random embeddings.
        seed: Seed of random embeddings.

    Returns:
        The force, float32 [B, C, H, W]. It is zero outside the repulsion's window, and for a batch
        of one without a bank, with a warning.

    Raises:
        ValueError: If the latents are not [B, C, H, W], the noise level is not above 0, or the
            group size is too small or does not divide the batch.
        TypeError: If the repulsion, the noise level or the group size is something else.
    """
    repulsion = as_repulsion(repulsion)
    check_number("sigma", sigma)
    if sigma <= 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    if denoised.ndim != 4:
        raise ValueError(f"denoised must be [B, C, H, W], got {list(denoised.shape)}")
    if z.shape != denoised.shape:
        raise ValueError(f"z must be {list(denoised.shape)} as denoised is, got {list(z.shape)}")
    check_group_size(group_size, repulsion)
    return force_on(
        denoised,
        z,
        sigma,
        for_latents(repulsion, denoised),
        next_sigma=next_sigma,
        group_size=group_size,
        step=step,
        seed=seed,
    )


def force_on(
    denoised: Tensor,
    z: Tensor,
    sigma: float,
    repulsion: Repulsion,
    *,
    next_sigma: float | None,
    group_size: int | None,
    step: int,
    seed: int,
    first: bool = False,
) -> Tensor:
    """Returns the force of a `Repulsion` that knows its run; see `repulsive_force`.

    Args:
        first: Whether the step is the first of a run that starts from pure noise.
    """
    batch = len(denoised)
    size = batch if group_size is None else group_size
    if batch % size:
        raise ValueError(f"group_size must divide the batch of {batch}, got {size}")
    if size < 2 and not repulsion.acts_on_one:
        warnings.warn("a batch of one has nothing to repel from, so there is no push", stacklevel=3)
        return torch.zeros_like(denoised, dtype=torch.float32)
    # Copies, since tensors of ComfyUI's inference mode cannot be differentiated
    with undisturbed():
        x0, z = (latents.detach().float().clone() for latents in (denoised, z))
        particles = Particles(
            denoised=x0,
            noisy=lambda part: z[part],
            sigma=sigma,
            next_sigma=sigma if next_sigma is None else next_sigma,
            step=step,
            last=next_sigma == 0,
            num_particles=size,
            seed=seed,
            device=x0.device,
            measure=False,
            first=first,
        )
        changes = repulsion.push(particles).changes
        if changes is None:
            return torch.zeros_like(x0)
        force = torch.cat(list(changes))
        particles.finite.read()
        return force


def corrected_epsilon(
    epsilon: Tensor,
    z: Tensor,
    sigma: float,
    repulsion: Repulsion | str = DEFAULT_EMBEDDING,
    **how: Any,
) -> Tensor:
    """Returns the predicted noise after the repulsion: epsilon - strength * r_i.

    Args:
        epsilon: The predicted noise, after guidance, [B, C, H, W].
        how: `next_sigma`, `group_size`, `step` and `seed`; see `repulsive_force` for all arguments.

    Raises:
        ValueError: As `repulsive_force` does.
    """
    force = repulsive_force(z - sigma * epsilon, z, sigma, repulsion, **how)
    return (epsilon - sigma * force).to(epsilon.dtype)


def corrected_denoised(
    denoised: Tensor,
    z: Tensor,
    sigma: float,
    repulsion: Repulsion | str = DEFAULT_EMBEDDING,
    **how: Any,
) -> Tensor:
    """Returns the clean latents after the repulsion: x0 + sigma strength * r_i.

    Args:
        denoised: The predicted clean latents x0, after guidance, [B, C, H, W].
        how: `next_sigma`, `group_size`, `step` and `seed`; see `repulsive_force` for all arguments.

    Raises:
        ValueError: As `repulsive_force` does.
    """
    force = repulsive_force(denoised, z, sigma, repulsion, **how)
    return (denoised + sigma**2 * force).to(denoised.dtype)


def as_repulsion(repulsion: Repulsion | str) -> Repulsion:
    """Returns a `Repulsion` that only pushes, from one or from the name of an embedding.

    `pause` and `restart` need the model and the order of the steps, which only `sample` and `repel`
    have. A `Repulsion` that asks for them gets a warning; "auto" does not ask.
    """
    if isinstance(repulsion, str):
        return Repulsion(repulsion, **PUSH_ALONE)
    if not isinstance(repulsion, Repulsion):
        raise TypeError(f"repulsion must be a Repulsion or a name, got {repulsion!r}")
    asked = {name: getattr(repulsion, name) for name in PUSH_ALONE}
    ignored = [f"{name}={value}" for name, value in asked.items() if value not in (None, AUTO)]
    if ignored and repulsion.strength > 0:
        warnings.warn(
            f"{' and '.join(ignored)} of the repulsion cannot be obeyed here, only by "
            "fastrepulse.sample and repel: particles are pushed, guidance stays on and there is no "
            "restart",
            stacklevel=3,
        )
    return replace(repulsion, **PUSH_ALONE)


def for_latents(
    repulsion: Repulsion, latents: Tensor, sigmas: tuple[float, ...] | None = None
) -> Repulsion:
    """Returns the repulsion for latents [B, C, H, W] and, if they are known, noise levels."""
    # Whether there is guidance makes a difference with few steps alone, where there is usually none
    return repulsion.for_run(RunFacts(latents.shape[2], latents.shape[3], sigmas, False))


def check_group_size(group_size: int | None, repulsion: Repulsion) -> None:
    """Raises unless a group size is None or at least 2, or 1 with a bank."""
    if group_size is None:
        return
    if isinstance(group_size, bool) or not isinstance(group_size, int):
        raise TypeError(f"group_size must be an int or None, got {group_size!r}")
    least = 1 if repulsion.acts_on_one else 2
    if group_size < least:
        raise ValueError(f"group_size must be at least {least}, got {group_size}")
