"""What all methods share that act in an embedding: embed the particles, pull a force back."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastrepulse.checks import check_choice, check_number, check_window
from fastrepulse.embeddings import Embed, Embedding, build
from fastrepulse.methods.base import Particles, PromptForce
from fastrepulse.out_of_memory import ran_out
from fastrepulse.torch_settings import full_precision

SHARED_FROM = 20_000
"""Particles of a prompt from which processes share out its pairs."""

ROWS = 1024
"""How many rows are looked at together, where all of them would take too much memory."""

KEPT = 2**28
"""The most bytes that wait, beside the particles, between a step's forward and backward passes."""

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
    embedding: Embedding,
    on: Literal["noisy", "denoised"],
    particles: Particles,
    seed: int,
    differentiable: bool = True,
) -> tuple[Tensor, Callable[[slice, Tensor], Tensor]]:
    """Embeds all particles, and returns the way back.

    Args:
        embedding: phi, a map from latents to [n, d].
        on: What is embedded.
        particles: At this step.
        seed: From which the embedding draws.
        differentiable: Whether there will be a way back.

    Returns:
        All embeddings [prompts * N, d], those of other processes among them; and the function from
        a slice of the particles and the force [n, d] on them to J^T F. It serves once for a slice.

    Raises:
        ValueError: If the embedding does not return [n, d].
    """
    latents = particles.noisy if on == "noisy" else particles.denoised.__getitem__
    embedding.prepare(seed, particles.step, particles.sigma if on == "noisy" else 0.0)
    embedded, graphs, spent = [], {}, 0 if differentiable else KEPT
    for part in particles.micro_batches():
        own = latents(part).to(particles.device).float()
        with full_precision():
            if spent < KEPT:
                # A copy: noisy latents may be written over before the backward pass
                rows, graph, held = differentiated(embedding, own.clone() if on == "noisy" else own)
                spent += held
                if spent <= KEPT:
                    graphs[part.start, part.stop] = graph
            else:
                rows = in_halves(embedding, own)
        if rows.ndim != 2 or len(rows) != len(own):
            raise ValueError(
                f"the embedding of {len(own)} latents must be [{len(own)}, d], "
                f"got {tuple(rows.shape)}"
            )
        embedded.append(rows.detach().to(torch.promote_types(rows.dtype, torch.float32)))
    together = particles.share.gather(torch.cat(embedded))
    particles.watch.finite(together, "the embedding")

    def embed_and_back(own: Tensor, force: Tensor) -> Tensor:
        return embedding.vjp(own)[1](force)

    def back(part: slice, force: Tensor) -> Tensor:
        graph = graphs.pop((part.start, part.stop), None)
        with full_precision():
            if graph is not None:
                return graph(force)
            return in_halves(embed_and_back, latents(part).to(particles.device), force)

    return together, back


def differentiated(
    embedding: Embedding, own: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor] | None, int]:
    """Returns embeddings, the way back, and the bytes that it holds.

    Where memory runs out there is none, and more than is kept.
    """
    try:
        with counting_saved() as saved:
            rows, graph = embedding.vjp(own)
        return rows, graph, own.nbytes + sum(saved.values())
    except Exception as error:
        if not ran_out(error):
            raise
    return in_halves(embedding, own), None, KEPT + 1


def in_halves(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Returns what a function makes of rows, of one half after the other if memory runs out."""
    try:
        return function(*rows)
    except Exception as error:
        if not ran_out(error) or len(rows[0]) == 1:
            raise
    # Not while the error is handled, which keeps what had been allocated
    torch.cuda.empty_cache()
    halves = zip(*(each.chunk(2) for each in rows), strict=True)
    return torch.cat([in_halves(function, *half) for half in halves])


@contextmanager
def counting_saved() -> Iterator[dict[int, int]]:
    """Yields the bytes of every tensor that is kept for a backward pass inside, by its address."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        # Itself would be a circle, which only the garbage collector frees
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def pull_back_forces(
    embedding: Embedding,
    on: Literal["noisy", "denoised"],
    particles: Particles,
    law: ForceLaw,
    seed: int | None = None,
    acts: bool = True,
) -> tuple[Callable[[slice], Tensor], list[PromptForce]]:
    """Embeds the particles, lets those of each prompt act on each other, and pulls the force back.

    Where it is the denoised latents that are embedded the denoiser's Jacobian is left out. The
    graphs of the forward passes are kept for the backward ones as far as `KEPT` goes; beyond that
    a micro-batch is embedded again.

    Args:
        embedding: phi, a map from latents to [n, d].
        on: What is embedded.
        particles: At this step.
        law: From embeddings to forces.
        seed: From which the embedding draws; by default that of the particles.
        acts: Whether the force is pulled back, or only measured.

    Returns:
        J^T F as a function of a slice of the particles, and what was measured for each prompt.
    """
    seed = particles.seed if seed is None else seed
    embedded, back = embed_together(embedding, on, particles, seed, acts)
    forces, measured = [], []
    for number, of_one in enumerate(embedded.split(particles.num_particles)):
        force, of_prompt = law(of_one, number)
        forces.append(force)
        measured.append(of_prompt)
    together = particles.share.own(torch.cat(forces))

    def pull_back(part: slice) -> Tensor:
        change = back(part, together[part])
        particles.watch.finite(change, "the repulsion", particles.share.rows[part])
        return change

    return pull_back, measured


def mean_distance(embedded: Tensor, rows: int = ROWS, own: slice | None = None) -> Tensor:
    """Returns the mean of ||phi_i - phi_j|| over i != j, with memory of `rows` x N at a time.

    Where there are rows of one's own it is their share: the sum over all rows is the mean.
    """
    if own is None and len(embedded) <= rows:
        return torch.pdist(embedded).mean()
    # Near the origin, where products of many rows cancel least
    embedded = embedded - embedded.mean(dim=0)
    some = embedded if own is None else embedded[own]
    sums = torch.stack([torch.cdist(part, embedded).sum() for part in some.split(rows)])
    return sums.sum() / (len(embedded) * (len(embedded) - 1))


def rows_of_own(particles: Particles, count: int) -> slice | None:
    """Returns whose force this process computes, among the N particles of every prompt.

    None for all: where no others compute theirs, or so few particles repel that the order of the
    sums is kept that one process has.

    Args:
        particles: At this step.
        count: How many there are to repel from.
    """
    if particles.share.part() == (0, 1) or count < SHARED_FROM:
        return None
    first = particles.share.rows[0]
    return slice(first, first + particles.prompts()[0].stop)


def root_mean_square(force: Tensor) -> Tensor:
    """Returns the root mean square over particles of the norm of a force [N, d]."""
    return force.square().sum(dim=1).mean().sqrt()


def part_duplicates(embedded: Tensor, seed: int, bandwidth: float | Tensor | None = None) -> Tensor:
    """Moves embeddings that coincide exactly apart, by a tenth of the kernel's width.

    The force between exact duplicates is zero, so they would stay together for ever. The direction
    is drawn from the seed; embeddings that are unlike all others are left alone.

    Args:
        embedded: Embeddings [N, d].
        seed: From which directions are drawn.
        bandwidth: h of the kernel; by default about that of the median heuristic. Where all are
            alike, and it is next to nothing, the move is a thousandth of their norm.
    """
    duplicate = have_a_double(embedded)
    if duplicate is None:
        return embedded
    if bandwidth is None:
        # The mean squared distance is twice the variance, and about the median
        variance = embedded.var(dim=0, correction=0).sum()
        norm = embedded.square().sum(dim=1).mean()
        bandwidth = torch.maximum(2 * variance / math.log(max(len(embedded), 2)), 1e-4 * norm)
    else:
        bandwidth = torch.as_tensor(bandwidth)
    generator = torch.Generator().manual_seed(seed % 2**63)
    length = 0.1 * (bandwidth / embedded.shape[1]).sqrt()

    def parted(own: Tensor, double: Tensor) -> Tensor:
        direction = torch.randn(own.shape, generator=generator, dtype=torch.float32).to(own)
        return torch.where(double[:, None], own + length * direction, own)

    # A part at a time: of raw latents nothing else as large as all of them is made
    parts = zip(embedded.split(ROWS), duplicate.split(ROWS), strict=True)
    return torch.cat([parted(own, double) for own, double in parts])


@lru_cache(maxsize=64)
def odd_numbers(count: int) -> np.ndarray:
    """Returns whole numbers drawn among the odd ones of 63 bits."""
    return np.random.default_rng(0).integers(2**62, size=count) * 2 + 1


def is_at_hand(tensor: Tensor) -> bool:
    """Whether the host can read a tensor without waiting for another device."""
    return tensor.device.type == "cpu"


def have_a_double(rows: Tensor) -> Tensor | None:
    """Says of each row [N, d] whether another has exactly its numbers, [N].

    None says that no row has; a GPU would have to be waited for, to say so. Rows are told apart by
    a 64-bit hash: a sum, in whole numbers, of their bits times odd numbers.
    """
    kind = torch.int64 if rows.dtype == torch.float64 else torch.int32
    odd = torch.from_numpy(odd_numbers(rows.shape[1])).to(rows.device)
    # A zero below zero is one
    bits = ((part + 0.0).contiguous().view(kind).to(torch.int64) for part in rows.split(ROWS))
    hashes, order = torch.cat([(part * odd).sum(dim=1) for part in bits]).sort()
    none, same = hashes.new_zeros(1, dtype=torch.bool), hashes[1:] == hashes[:-1]
    if is_at_hand(same) and not same.any():
        return None
    double = torch.cat([none, same]) | torch.cat([same, none])
    return torch.empty_like(double).scatter_(0, order, double)
