"""Noise that depends on the seed and the particle alone, not on the batch that it is drawn in."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

STREAMS = ("initial", "text", "correction", "restart")


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
    counter = [0, 0, STREAMS.index(stream), step]
    drawn = [
        np.random.Generator(np.random.Philox(key=[seed, i], counter=counter)).standard_normal(
            shape, np.float32
        )
        for i in particles
    ]
    return torch.from_numpy(np.stack(drawn))


def step_generator(seed: int, step: int) -> torch.Generator:
    """Returns the source of what all particles of a run share and draw anew at every step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def initial_noise(seed: int, num_particles: int, shape: Sequence[int]) -> Tensor:
    """Draws unit noise [N, *shape] to begin from."""
    return particle_noise(seed, range(num_particles), shape)
