"""Stein variational gradient descent with the kernel-averaged score."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.checks import in_window
from fastrepulse.kernels import median_rbf_repulsion
from fastrepulse.methods.base import Particles, PromptForce, Push
from fastrepulse.methods.embedded import EmbeddedMethod
from fastrepulse.methods.force import (
    embed_together,
    mean_distance,
    part_duplicates,
    root_mean_square,
)


@dataclass(frozen=True)
class SVGD(EmbeddedMethod):
    """Moves every particle along sum_j (k_ij s_j + strength * grad_j k_ij) / S_i, S_i = sum_j k_ij.

    Liu & Wang 2016, arXiv:1608.04471, divide by N, which would shrink the score by N / S_i and
    leave the noise in; divided by S_i the averaged score keeps its size, and what repels is the
    negative score of the particles' density estimate. The kernel compares noisy latents.
    """

    strength: float = 1.0
    window: tuple[float, float] = (math.inf, 4.0)
    joint = False  # the scores of all are averaged

    def push(self, particles: Particles) -> Push:
        if not in_window(particles.sigma, self.window):
            return Push()
        embedding = embeddings.build(self.embedding)
        embedded, back = embed_together(embedding, self.on, particles, particles.seed)
        change = torch.empty_like(particles.denoised, dtype=torch.float32)
        measured = []
        for own in particles.prompts():
            x = part_duplicates(embedded[own], particles.seed)
            force, similarity, h = median_rbf_repulsion(x)
            scores = particles.score(own)
            force_of_share = force / similarity[:, None]
            pulled = torch.cat(
                [
                    back(part, force_of_share[part.start - own.start : part.stop - own.start])
                    for part in particles.micro_batches(own)
                ]
            )
            averaged = weighted_mean(x, scores.flatten(1), h, similarity)
            change[own] = averaged.view_as(scores) - scores + self.strength * pulled
            measured.append(PromptForce(mean_distance(x), h, root_mean_square(force)))
        return Push(lambda part: change[part].to(particles.device), measured)


def weighted_mean(
    x: Tensor,  # [N, d]
    values: Tensor,  # [N, D]
    bandwidth: Tensor,
    similarity: Tensor,  # [N]
    rows: int = 1024,
) -> Tensor:  # [N, D]
    """Returns sum_j k_ij v_j / S_i, with memory of `rows` x N at a time."""
    means = []
    for part, total in zip(x.split(rows), similarity.split(rows), strict=True):
        kernel = torch.exp(-torch.cdist(part, x).square() / bandwidth)
        means.append(kernel @ values / total[:, None])
    return torch.cat(means)
