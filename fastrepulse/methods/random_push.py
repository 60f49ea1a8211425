"""A control: the push of the repulsion in random directions of the embedding."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrepulse.embeddings import Embedding
from fastrepulse.methods.base import Particles, Partition
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.noise import step_generator


@dataclass(frozen=True)
class RandomPush(Repulsion):
    """Pushes as `Repulsion` does, with random numbers in place of the repulsive force.

        F_i = std(phi) u_i,    u_i normal, [d], drawn once per particle

    Embedding, length, window, pause and restart are the same. So the difference between the two is
    what the particles' knowledge of each other adds. The arguments are those of `Repulsion`;
    `bandwidth` and `subset` have no effect.
    """

    def _force(
        self,
        embedding: Embedding,
        everyone: Tensor,  # [M, d]
        rows: slice,
        weights: Tensor | None,
        particles: Particles,
        partition: Partition | None = None,
    ) -> tuple[Tensor, Tensor]:
        # Step 0 at every step, so that a particle keeps its direction
        directions = torch.randn(everyone.shape, generator=step_generator(particles.seed, 0))
        force = everyone.std(dim=0) * directions.to(everyone)
        return force[rows], force.new_full((), torch.nan)

    def settings(self) -> dict[str, Any]:
        return {"method": type(self).__name__, **super().settings()}
