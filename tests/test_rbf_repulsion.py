import math

import pytest
import torch
from tolerances import AGAINST_FLOAT64

from fastrepulse.kernels import median_sq_distance, rbf_repulsion

SHAPES = [
    pytest.param(n, d, id=f"N{n}-d{d}")
    for n, d in [(1, 1), (1, 4), (2, 1), (2, 4), (3, 16), (17, 63), (64, 64), (127, 5), (5, 768)]
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def draw(n, d, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def by_hand(x, h):
    """Force and similarity straight from the definition, with [N, N, d] and in float64."""
    x = x.double()
    difference = x[:, None] - x[None]
    k = torch.exp(-difference.square().sum(-1) / h)
    return 2 / h * (k[..., None] * difference).sum(1), k.sum(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_against_the_definition(n, d, dtype):
    x = draw(n, d, dtype)
    h = float(d)
    force, similarity = rbf_repulsion(x, h)
    expected_force, expected_similarity = by_hand(x, h)
    rtol, atol = AGAINST_FLOAT64[dtype]
    assert force.dtype == similarity.dtype == dtype
    torch.testing.assert_close(force.double(), expected_force, rtol=rtol, atol=atol)
    torch.testing.assert_close(similarity.double(), expected_similarity, rtol=rtol, atol=atol)


@pytest.mark.parametrize("h", [1e-6, 1e-2, 1.0, 1e6])
def test_force_is_minus_the_gradient_of_similarity(h):
    x = draw(9, 4, torch.float64).requires_grad_()
    # Half, because the sum over all i and j counts every pair twice
    total = rbf_repulsion(x, h)[1].sum() / 2
    (gradient,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(rbf_repulsion(x.detach(), h)[0], -gradient)


def test_similarity_passes_gradcheck():
    x = draw(5, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rbf_repulsion(x, 2.0)[1], x)


def test_far_from_the_origin_near_duplicates_keep_their_force():
    x = draw(6, 8, torch.float64) * 1e-3
    moved = (x + 100).float()
    force, _ = rbf_repulsion(moved, 1e-5)
    expected, _ = by_hand(moved, 1e-5)
    torch.testing.assert_close(force.double(), expected, rtol=1e-3, atol=1e-3)


def test_two_particles_are_pushed_straight_apart():
    force, similarity = rbf_repulsion(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 25.0)
    torch.testing.assert_close(similarity, torch.full((2,), 1 + math.exp(-1)))
    expected = 2 / 25 * math.exp(-1) * torch.tensor([[-3.0, -4.0], [3.0, 4.0]])
    torch.testing.assert_close(force, expected)


def test_non_contiguous_input():
    x = draw(8, 6, torch.float32)
    torch.testing.assert_close(rbf_repulsion(x.T.contiguous().T, 3.0)[0], rbf_repulsion(x, 3.0)[0])


@pytest.mark.parametrize("n", [2, 3, 4, 17, 127])
def test_median_is_that_of_sorting(n):
    x = draw(n, 5, torch.float64)
    distances = sorted(
        (x[i] - x[j]).square().sum().item() for i in range(n) for j in range(i + 1, n)
    )
    lower = distances[(len(distances) - 1) // 2]
    assert median_sq_distance(x).item() == pytest.approx(lower, rel=1e-12)


@pytest.mark.parametrize(
    ("x", "h", "error", "named"),
    [
        (torch.zeros(3), 1.0, ValueError, r"\(3,\)"),
        (torch.zeros(2, 2, 2), 1.0, ValueError, r"\(2, 2, 2\)"),
        (torch.zeros(2, 2, dtype=torch.int64), 1.0, TypeError, "int64"),
        ([[0.0]], 1.0, TypeError, "list"),
        (torch.zeros(2, 2), 0.0, ValueError, "0.0"),
        (torch.zeros(2, 2), -1.0, ValueError, "-1.0"),
        (torch.zeros(2, 2), math.nan, ValueError, "nan"),
    ],
)
def test_bad_input_is_named(x, h, error, named):
    with pytest.raises(error, match=named):
        rbf_repulsion(x, h)


def test_a_median_needs_two():
    with pytest.raises(ValueError, match="at least 2"):
        median_sq_distance(torch.zeros(1, 3))
