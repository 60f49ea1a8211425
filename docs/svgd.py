"""Stein variational gradient descent on a banana, by `rbf_repulsion` alone; draws docs/svgd.png."""

from pathlib import Path

import torch
from torch import Tensor

from fastrepulse.kernels import median_bandwidth, rbf_repulsion


def log_density(x: Tensor) -> Tensor:
    """A banana: x_1 of standard deviation 2, x_2 of standard deviation 1/2 around x_1^2 / 4."""
    return -(x[:, 0] ** 2) / 8 - 2 * (x[:, 1] - x[:, 0] ** 2 / 4) ** 2


def score(x: Tensor) -> Tensor:
    """Returns the gradient of the log density, [N, d]."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(x).sum(), x)
    return gradient


def svgd_direction(x: Tensor, scores: Tensor) -> Tensor:
    """Returns sum_j (k_ij s_j + grad_{x_j} k_ij) / N (Liu & Wang 2016), with memory linear in N."""
    h = median_bandwidth(x)
    force, _ = rbf_repulsion(x, h)
    columns = [rbf_repulsion(x, h, weights=column.contiguous())[1] for column in scores.T]
    return (torch.stack(columns, dim=1) + force) / len(x)


def sample(num_particles: int, steps: int = 2000, step_size: float = 0.1) -> Tensor:
    """Moves particles from a small cloud to the banana."""
    x = torch.randn(num_particles, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        x = x + step_size * svgd_direction(x, score(x))
    return x


def main() -> None:
    import matplotlib.pyplot as plt

    start, climbed = sample(300, steps=0), sample(300, steps=0)
    for _ in range(2000):
        climbed = climbed + 0.1 * score(climbed)
    across, up = torch.linspace(-6.5, 6.5, 200), torch.linspace(-3, 7, 150)
    level = log_density(torch.cartesian_prod(across, up)).exp().view(200, 150).T
    panels = {"start": start, "the score alone": climbed, "SVGD": sample(300)}
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.7), sharey=True, layout="constrained")
    for axis, (title, x) in zip(axes, panels.items(), strict=True):
        axis.contourf(across, up, level, levels=8, cmap="Blues")
        axis.scatter(*x.T, s=4, color="black")
        axis.set(title=title, xlim=(-6.5, 6.5), ylim=(-3, 7), xticks=[], yticks=[])
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
