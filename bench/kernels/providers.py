"""Other implementations of the repulsion force and the median distance, and ours.

Each provider takes embeddings [N, d] and returns the force [N, d] or the median. `stores` estimates
the number of floats in memory at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrepulse.kernels import median_sq_distance, rbf_repulsion


@dataclass(frozen=True)
class Provider:
    name: str
    compute: Callable[[Tensor, float], Tensor]
    stores: Callable[[int, int], float]

    def can_run(self, n: int, d: int) -> bool:
        """Whether a shape fits in memory and does not take minutes to compile or run."""
        if self.name == "KeOps" and n * n * d > 2e9:
            return False
        return self.stores(n, d) <= 1.5e9


def thesis(x: Tensor, h: float) -> Tensor:
    """Stores all differences as [d, N, N], like A. Pondaven's code (2023)."""
    rows = x.T  # [d, N]
    difference = rows[:, :, None] - rows[:, None, :]  # [d, N, N]
    k = torch.exp(-difference.square().sum(dim=0) / h)
    return (2 / h * k * difference).sum(dim=2).T


def particle_guidance(x: Tensor, h: float) -> Tensor:
    """Stores all differences as [N, N, d], like the code of Corso et al. (arXiv:2310.13102)."""
    difference = x[:, None] - x[None]  # [N, N, d]
    k = torch.exp(-difference.square().sum(dim=-1, keepdim=True) / h)
    return (2 / h * difference * k).sum(dim=1)


def autograd(x: Tensor, h: float) -> Tensor:
    """Differentiates the summed similarity through `torch.cdist`."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        similarity = torch.exp(-torch.cdist(leaf, x).square() / h).sum()
        return -torch.autograd.grad(similarity, leaf)[0]


def two_products(x: Tensor, h: float) -> Tensor:
    """Uses two matrix products, with kernel values [N, N] between them."""
    norms = x.square().sum(dim=1)
    k = torch.exp((norms[:, None] + norms[None] - 2 * x @ x.T).clamp_min(0) / -h)
    return 2 / h * (k.sum(dim=1, keepdim=True) * x - k @ x)


def keops(x: Tensor, h: float) -> Tensor:
    """Uses KeOps' symbolic reduction (Charlier et al. 2021), compiled for each d."""
    from pykeops.torch import LazyTensor

    difference = LazyTensor(x[:, None]) - LazyTensor(x[None])
    k = (-(difference**2).sum(-1) / h).exp()
    return 2 / h * (k * difference).sum(1)


compiled_two_products = torch.compile(two_products, dynamic=False)

FORCE = [
    Provider("thesis", thesis, lambda n, d: 3 * n * n * d),
    Provider("Particle Guidance", particle_guidance, lambda n, d: 3 * n * n * d),
    Provider("autograd", autograd, lambda n, d: 4 * n * n),
    Provider("two products", two_products, lambda n, d: 3 * n * n),
    Provider("two products, compiled", compiled_two_products, lambda n, d: 2 * n * n),
    Provider("KeOps", keops, lambda n, d: n * d),
    Provider("fastrepulse", lambda x, h: rbf_repulsion(x, h)[0], lambda n, d: n * d),
]

MEDIAN = [
    Provider("pdist + median", lambda x, _: torch.pdist(x).median().square(), lambda n, d: n * n),
    Provider(
        "product + median",
        lambda x, _: (
            torch.cdist(x, x)[torch.triu_indices(len(x), len(x), 1).unbind()].median().square()
        ),
        lambda n, d: 4 * n * n,
    ),
    Provider("fastrepulse", lambda x, _: median_sq_distance(x), lambda n, d: n * d),
]
