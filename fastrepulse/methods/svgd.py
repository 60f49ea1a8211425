"""Stein variational gradient descent with the kernel-averaged score."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.checks import Window
from fastrepulse.kernels import median_rbf_repulsion
from fastrepulse.methods.base import Particles, PromptForce, Push
from fastrepulse.methods.diagnostics import mean_distance, root_mean_square
from fastrepulse.methods.duplicates import separate_duplicates
from fastrepulse.methods.embedded import EmbeddedMethod
from fastrepulse.methods.pull_back import embed_particles


@dataclass(frozen=True)
class SVGD(EmbeddedMethod):
    """Moves every particle along sum_j (k_ij s_j + strength * grad_j k_ij) / S_i, S_i = sum_j k_ij.

    Liu & Wang 2016, arXiv:1608.04471, divide by N. That would shrink the score by N / S_i and leave
    noise in the images. Divided by S_i, the averaged score keeps its size, and the repulsion is the
    negative score of the particles' kernel density estimate. The kernel compares noisy latents.
    """

    strength: float = 1.0
    window: Window | tuple[float, float] = (math.inf, 4.0)
    joint = False  # averages the scores of all particles

    def push(self, particles: Particles) -> Push:
        if particles.sigma not in self.window:
            return Push()
        embedding = embeddings.build(self.embedding)
        embedded, back = embed_particles(embedding, self.on, particles, particles.seed)
        change = torch.empty_like(particles.denoised, dtype=torch.float32)
        measured = []
        for own in particles.prompts():
            x = separate_duplicates(embedded[own], particles.seed)
            force, similarity, h = median_rbf_repulsion(x)
            scores = particles.score(own)
            normalised = force / similarity[:, None]
            pulled = torch.cat(
                [
                    back(part, normalised[part.start - own.start : part.stop - own.start])
                    for part in particles.micro_batches(own)
                ]
            )
            averaged = weighted_mean(x, scores.flatten(1), h, similarity)
            change[own] = averaged.view_as(scores) - scores + self.strength * pulled
            measured.append(PromptForce(mean_distance(x), h, root_mean_square(force)))
        return Push(Push.of(change, particles).changes, measured)


def weighted_mean(
    x: Tensor,  # [N, d]
    values: Tensor,  # [N, D]
    bandwidth: Tensor,
    similarity: Tensor,  # [N]
    rows: int = 1024,
) -> Tensor:  # [N, D]
    """Returns sum_j k_ij v_j / S_i, with memory of `rows` x N."""
    means = []
    for part, total in zip(x.split(rows), similarity.split(rows), strict=True):
        kernel = torch.exp(-torch.cdist(part, x).square() / bandwidth)
        means.append(kernel @ values / total[:, None])
    return torch.cat(means)
