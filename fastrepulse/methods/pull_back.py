"""Embeds the particles, computes forces between them, and pulls the forces back to the latents."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastrepulse.embeddings import Embedding
from fastrepulse.methods.base import Particles, PromptForce
from fastrepulse.out_of_memory import in_batches, ran_out
from fastrepulse.torch_settings import full_precision

MAX_GRAPH_BYTES = 2**28
"""Most bytes of autograd graphs kept between the forward and backward passes of a step."""

On: TypeAlias = Literal["noisy", "denoised"]
ForceFunction: TypeAlias = Callable[[Tensor, int], tuple[Tensor, PromptForce]]
"""From the embeddings [N, d] of one prompt, and its index, to the force [N, d] and diagnostics."""


def pull_back_forces(
    embedding: Embedding,
    on: On,
    particles: Particles,
    force_fn: ForceFunction,
    seed: int | None = None,
    active: bool = True,
) -> tuple[Iterator[Tensor], list[PromptForce]]:
    """Returns J^T F of each micro-batch, and the diagnostics of each prompt.

    If the embedding is of the denoised latents, the denoiser's Jacobian is left out. Graphs of the
    forward passes are kept up to `MAX_GRAPH_BYTES`; later micro-batches are embedded again.

    Args:
        embedding: phi, from latents to [n, d].
        on: Which latents are embedded.
        particles: The particles at this step.
        force_fn: From embeddings to forces.
        seed: Seed of the embedding; by default that of the particles.
        active: Whether the force will be pulled back, or is only measured.
    """
    seed = particles.seed if seed is None else seed
    embedded, back = embed_particles(embedding, on, particles, seed, active)
    prompts = enumerate(embedded.split(particles.num_particles))
    forces = [force_fn(rows, number) for number, rows in prompts]
    local_force = particles.partition.local(torch.cat([force for force, _ in forces]))

    def pulled_back() -> Iterator[Tensor]:
        for part in particles.micro_batches():
            change = back(part, local_force[part])
            particles.finite.add(change, "the repulsion", particles.partition.rows[part])
            yield change

    return pulled_back(), [diagnostics for _, diagnostics in forces]


def embed_particles(
    embedding: Embedding, on: On, particles: Particles, seed: int, differentiable: bool = True
) -> tuple[Tensor, Callable[[slice, Tensor], Tensor]]:
    """Embeds all particles.

    Args:
        embedding: phi, from latents to [n, d].
        on: Which latents are embedded.
        particles: The particles at this step.
        seed: Seed of the embedding.
        differentiable: Whether graphs are kept for the backward pass.

    Returns:
        The embeddings of all ranks' particles, [prompts * N, d]; and a function from a slice of
        the local particles and the force [n, d] on them to J^T F, to be called once per slice.

    Raises:
        ValueError: If the embedding does not return [n, d].
    """
    latents = particles.noisy if on == "noisy" else particles.denoised.__getitem__
    embedding.prepare(seed, particles.step, particles.sigma if on == "noisy" else 0.0)
    embedded, graphs, kept = [], {}, 0 if differentiable else MAX_GRAPH_BYTES
    for part in particles.micro_batches():
        own = latents(part).to(particles.device).float()
        with full_precision():
            if kept < MAX_GRAPH_BYTES:
                # A copy, since noisy latents may be overwritten before the backward pass
                rows, graph, size = _with_graph(embedding, own.clone() if on == "noisy" else own)
                kept += size
                if kept <= MAX_GRAPH_BYTES:
                    graphs[part.start, part.stop] = graph
            else:
                rows = in_fitting_batches(embedding, own)
        if rows.ndim != 2 or len(rows) != len(own):
            raise ValueError(
                f"the embedding of {len(own)} latents must be [{len(own)}, d], "
                f"got {tuple(rows.shape)}"
            )
        embedded.append(rows.detach().to(torch.promote_types(rows.dtype, torch.float32)))
    gathered = particles.partition.all_gather(torch.cat(embedded))
    particles.finite.add(gathered, "the embedding")

    def embed_and_back(own: Tensor, force: Tensor) -> Tensor:
        return embedding.vjp(own)[1](force)

    def back(part: slice, force: Tensor) -> Tensor:
        graph = graphs.pop((part.start, part.stop), None)
        with full_precision():
            if graph is not None:
                return graph(force)
            return in_fitting_batches(embed_and_back, latents(part).to(particles.device), force)

    return gathered, back


def _with_graph(
    embedding: Embedding, own: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor] | None, int]:
    """Returns embeddings, their backward function, and the bytes that its graph keeps.

    If memory runs out there is no backward function, and no later graph is kept.
    """
    try:
        with _counting_saved() as saved:
            rows, graph = embedding.vjp(own)
        return rows, graph, own.nbytes + sum(saved.values())
    except Exception as error:
        if not ran_out(error):
            raise
    return in_fitting_batches(embedding, own), None, MAX_GRAPH_BYTES + 1


def in_fitting_batches(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Applies a function to rows; if memory runs out, to smaller batches."""
    return torch.cat(list(in_batches(function, rows, len(rows[0]))))


@contextmanager
def _counting_saved() -> Iterator[dict[int, int]]:
    """Yields the bytes of each tensor that autograd saves inside the context, by its address."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        # The tensor itself would make a reference cycle
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
