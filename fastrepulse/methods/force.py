"""What all methods share that act in an embedding: embed the particles, pull a force back."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastrepulse.checks import check_choice, check_finite, check_number, check_window
from fastrepulse.embeddings import Embed, Embedding, build
from fastrepulse.kernels import median_bandwidth
from fastrepulse.methods.base import Particles, PromptForce
from fastrepulse.surroundings import full_precision

ForceLaw: TypeAlias = Callable[[Tensor, int], tuple[Tensor, PromptForce]]
"""From the embeddings [N, d] of one prompt, and its number, to the force on each [N, d]."""


def check_settings(
    embedding: str | Embed,
    strength: float,
    on: Literal["noisy", "denoised"],
    window: tuple[float, float],
) -> None:
    """Raises unless these are settings that a method in an embedding can have."""
    build(embedding)
    check_number("strength", strength)
    check_choice("on", on, ("noisy", "denoised"))
    check_window("window", window)


def embed_together(
    embedding: Embedding, on: Literal["noisy", "denoised"], particles: Particles, seed: int
) -> tuple[Callable[[slice], Tensor], Tensor]:
    """Returns what is embedded, as a function of a slice, and all embeddings [prompts * N, d].

    Those of other processes are among the latter.

    Raises:
        ValueError: If the embedding does not return [n, d].
        FloatingPointError: If an embedding is not finite.
    """
    latents = particles.noisy if on == "noisy" else particles.denoised.__getitem__
    embedding.prepare(seed, particles.step, particles.sigma if on == "noisy" else 0.0)
    embedded = []
    for part in particles.micro_batches():
        own = latents(part).to(particles.device).float()
        with full_precision():
            rows = embedding(own)
        if rows.ndim != 2 or len(rows) != len(own):
            raise ValueError(
                f"the embedding of {len(own)} latents must be [{len(own)}, d], "
                f"got {tuple(rows.shape)}"
            )
        embedded.append(rows.detach().to(torch.promote_types(rows.dtype, torch.float32)))
    together = particles.share.gather(torch.cat(embedded))
    check_finite(together, "the embedding", particles.step)
    return latents, together


def pull_back_forces(
    embedding: Embedding,
    on: Literal["noisy", "denoised"],
    particles: Particles,
    law: ForceLaw,
    seed: int | None = None,
) -> tuple[Callable[[slice], Tensor], list[PromptForce]]:
    """Embeds the particles, lets those of each prompt act on each other, and pulls the force back.

    Where it is the denoised latents that are embedded the denoiser's Jacobian is left out.

    Args:
        embedding: phi, a map from latents to [n, d].
        on: What is embedded.
        particles: At this step.
        law: From embeddings to forces.
        seed: From which the embedding draws; by default that of the particles.

    Returns:
        J^T F as a function of a slice of the particles, and what was measured for each prompt.
    """
    latents, embedded = embed_together(
        embedding, on, particles, particles.seed if seed is None else seed
    )
    forces, measured = [], []
    for number, of_one in enumerate(embedded.split(particles.num_particles)):
        force, of_prompt = law(of_one, number)
        forces.append(force)
        measured.append(of_prompt)
    together = particles.share.own(torch.cat(forces))

    def pull_back(part: slice) -> Tensor:
        with full_precision():
            change = embedding.pull_back(latents(part).to(particles.device), together[part])
        check_finite(change, "the repulsion", particles.step, particles.share.rows[part])
        return change

    return pull_back, measured


def mean_distance(embedded: Tensor, rows: int = 1024) -> float:
    """Returns the mean of ||phi_i - phi_j|| over i != j, with memory of `rows` x N at a time."""
    if len(embedded) <= rows:
        return torch.pdist(embedded).mean().item()
    # Near the origin, where products of many rows cancel least
    embedded = embedded - embedded.mean(dim=0)
    total = sum(torch.cdist(part, embedded).sum().item() for part in embedded.split(rows))
    return total / (len(embedded) * (len(embedded) - 1))


def root_mean_square(force: Tensor) -> float:
    """Returns the root mean square over particles of the norm of a force [N, d]."""
    return force.square().sum(dim=1).mean().sqrt().item()


def part_duplicates(embedded: Tensor, bandwidth: float | Literal["median"], seed: int) -> Tensor:
    """Moves embeddings that coincide exactly apart, by a tenth of the kernel's width.

    The force between exact duplicates is zero, so they would stay together for ever. The direction
    is drawn from the seed; embeddings that are unlike all others are left alone. Where all are
    alike, and the kernel has next to no width, it is a thousandth of their norm.
    """
    _, group, sizes = torch.unique(embedded, dim=0, return_inverse=True, return_counts=True)
    duplicate = sizes[group] > 1
    if not duplicate.any():
        return embedded
    if bandwidth == "median":
        norms = embedded.square().sum(dim=1)
        h = max(median_bandwidth(embedded).item(), 1e-4 * norms.mean().item())
    else:
        h = bandwidth
    generator = torch.Generator().manual_seed(seed % 2**63)
    direction = torch.randn(embedded.shape, generator=generator, dtype=torch.float32).to(embedded)
    nudge = direction * (0.1 * math.sqrt(h / embedded.shape[1]))
    return torch.where(duplicate[:, None], embedded + nudge, embedded)
