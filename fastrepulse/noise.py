"""Random noise for each particle, independent of the batch."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

STREAMS = ("initial", "text", "correction", "restart")

NUMBERS_PER_THREAD = 2**17
"""Numbers per thread from which a further thread pays."""


def particle_noise(
    seed: int,
    particles: Iterable[int],
    shape: Sequence[int],
    stream: Literal["initial", "text", "correction", "restart"] = "initial",
    step: int = 0,
) -> Tensor:
    """Returns unit normal noise [n, *shape]; a row depends on (seed, particle, stream, step) only.

    Args:
        seed: In [0, 2^63).
        particles: Index of each particle within its prompt.
        shape: Shape of one particle's noise.
        stream: The purpose of the noise; each purpose has its own numbers.
        step: Index of the step, or of another event.
    """
    particles, counter = list(particles), [0, 0, STREAMS.index(stream), step]
    noise = np.empty((len(particles), math.prod(shape)), np.float32)

    def draw(part: slice) -> None:
        for i, row in zip(particles[part], noise[part], strict=True):
            bits = np.random.Philox(key=[seed, i], counter=counter)
            np.random.Generator(bits).standard_normal(dtype=np.float32, out=row)

    threads = min(torch.get_num_threads(), noise.size // NUMBERS_PER_THREAD)
    if threads < 2:
        draw(slice(None))
    else:
        with ThreadPoolExecutor(threads) as pool:
            # The list raises the errors of the threads
            list(pool.map(draw, (slice(i, None, threads) for i in range(threads))))
    return torch.from_numpy(noise.reshape(len(particles), *shape))


def step_generator(seed: int, step: int) -> torch.Generator:
    """Returns a generator for random numbers that all particles share at a step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def initial_noise(seed: int, num_particles: int, shape: Sequence[int]) -> Tensor:
    """Returns the initial unit normal noise of all particles, [N, *shape]."""
    return particle_noise(seed, range(num_particles), shape)
