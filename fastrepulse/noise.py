"""Noise that depends on the seed and the particle alone, not on the batch that it is drawn in."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

STREAMS = ("initial", "text", "correction", "restart")

WORTH_A_THREAD = 2**17
"""How many numbers are drawn before another thread helps."""


def particle_noise(
    seed: int,
    particles: Iterable[int],
    shape: Sequence[int],
    stream: Literal["initial", "text", "correction", "restart"] = "initial",
    step: int = 0,
) -> Tensor:
    """Draws unit noise [n, *shape]; that of a particle depends on (seed, particle, stream, step).

    Args:
        seed: In [0, 2^63).
        particles: The number of each particle within its prompt.
        shape: Of what is drawn for each.
        stream: What it is for.
        step: The number of the step, or of whatever is counted.
    """
    particles, counter = list(particles), [0, 0, STREAMS.index(stream), step]
    drawn = np.empty((len(particles), math.prod(shape)), np.float32)

    def draw(part: slice) -> None:
        for i, row in zip(particles[part], drawn[part], strict=True):
            source = np.random.Philox(key=[seed, i], counter=counter)
            np.random.Generator(source).standard_normal(dtype=np.float32, out=row)

    threads = min(torch.get_num_threads(), drawn.size // WORTH_A_THREAD)
    if threads < 2:
        draw(slice(None))
    else:
        with ThreadPoolExecutor(threads) as pool:
            # Made a list, so that what goes wrong in a thread is raised here
            list(pool.map(draw, (slice(i, None, threads) for i in range(threads))))
    return torch.from_numpy(drawn.reshape(len(particles), *shape))


def step_generator(seed: int, step: int) -> torch.Generator:
    """Returns the source of what all particles of a run share and draw anew at every step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def initial_noise(seed: int, num_particles: int, shape: Sequence[int]) -> Tensor:
    """Draws unit noise [N, *shape] to begin from."""
    return particle_noise(seed, range(num_particles), shape)
