"""Diversity: Vendi score of every order, Rényi kernel entropy, mean similarity."""

import itertools
import math

import numpy as np
import pytest
import torch

from fastrepulse.metrics import (
    mean_pairwise_similarity,
    rke,
    vendi_score,
    vendi_score_of_kernel,
)

ORDERS = [0, 0.5, 1, 2, 7.5, 300, math.inf]
SHAPES = [
    pytest.param(1, 4, id="N1-d4"),
    pytest.param(7, 3, id="N7-d3"),
    pytest.param(5, 64, id="N5-d64"),
    pytest.param(41, 41, id="N41-d41"),
    pytest.param(130, 6, id="N130-d6"),
]


def draw(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(rows):
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows @ rows.T


def by_definition(kernel, order):
    """The Vendi score by numpy's eigenvalues of the N x N matrix."""
    values = np.linalg.eigvalsh(kernel.numpy() / len(kernel))
    values = values[values > 1e-9]
    if order == 1:
        return np.exp(-(values * np.log(values)).sum())
    if order == math.inf:
        return 1 / values.max()
    # The largest is taken out of the sum, which would underflow
    top = values.max()
    log_sum = order * np.log(top) + np.log(((values / top) ** order).sum())
    return np.exp(log_sum / (1 - order))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_vendi_of_copies_is_one_and_of_orthogonal_rows_their_number(n, order):
    scales = torch.arange(1.0, n + 1)[:, None]
    assert vendi_score(scales * torch.tensor([[0.1, 0.2, 0.3]]), order) == pytest.approx(1)
    assert vendi_score(3 * torch.eye(n, 9), order) == pytest.approx(n)
    assert vendi_score_of_kernel(torch.ones(n, n), order) == pytest.approx(1)
    assert vendi_score_of_kernel(torch.eye(n), order) == pytest.approx(n)


@pytest.mark.parametrize("order", ORDERS)
def test_vendi_of_two_pairs_of_copies_is_two(order):
    rows = torch.tensor([[1.0, 0], [5.0, 0], [0, 1.0], [0, 2.0]])
    assert vendi_score(rows, order) == pytest.approx(2)


def test_vendi_by_hand_at_an_angle():
    cosine = 0.6
    rows = torch.tensor([[1.0, 0.0], [cosine, 0.8]], dtype=torch.float64)
    a, b = (1 + cosine) / 2, (1 - cosine) / 2
    assert vendi_score(rows) == pytest.approx(math.exp(-a * math.log(a) - b * math.log(b)))
    assert vendi_score(rows, 0) == pytest.approx(2)
    assert vendi_score(rows, 0.5) == pytest.approx((a**0.5 + b**0.5) ** 2)
    assert vendi_score(rows, 2) == pytest.approx(1 / (a**2 + b**2))
    assert vendi_score(rows, math.inf) == pytest.approx(1 / a)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_vendi_is_that_of_the_eigenvalues(n, d, order):
    rows = draw(n, d) + 0.5
    expected = by_definition(cosines(rows), order)
    assert vendi_score(rows, order) == pytest.approx(expected, rel=1e-8)
    assert vendi_score_of_kernel(cosines(rows), order) == pytest.approx(expected, rel=1e-8)


def test_vendi_falls_with_the_order_and_has_no_jump_at_one():
    rows = draw(20, 30) + 1
    scores = [vendi_score(rows, order) for order in ORDERS]
    assert all(a > b for a, b in itertools.pairwise(scores))
    for order in (1 - 1e-6, 1 - 1e-12, 1 + 1e-12, 1 + 1e-6):
        assert vendi_score(rows, order) == pytest.approx(vendi_score(rows), rel=1e-5)


def test_order_zero_takes_no_rounding_for_a_dimension():
    rows = draw(50, 4) @ draw(4, 300, seed=1)
    assert vendi_score(rows.float(), 0) == pytest.approx(4)
    assert vendi_score_of_kernel(cosines(rows.float()), 0) == pytest.approx(4)


@pytest.mark.parametrize(
    ("features", "named"),
    [
        (torch.zeros(3), r"features .*\(3,\)"),
        (torch.zeros(0, 3), r"features .*\(0, 3\)"),
        (torch.zeros(3, 0), r"features .*\(3, 0\)"),
        (torch.tensor([[1.0], [0.0]]), "features .*row 1"),
        (torch.tensor([[math.nan], [1.0]]), "features .*row 0"),
        (torch.tensor([[1.0], [math.inf]]), "features .*row 1"),
        (torch.tensor([[1.0, 0], [1e200, 1e200]], dtype=torch.float64), "features .*row 1"),
        (torch.tensor([[1.0, 0], [1e-200, 1e-200]], dtype=torch.float64), "features .*row 1"),
    ],
)
def test_vendi_refuses_what_has_no_direction(features, named):
    with pytest.raises(ValueError, match=named):
        vendi_score(features)


@pytest.mark.parametrize(
    ("kernel", "named"),
    [
        (torch.ones(2, 3), r"kernel .*\(2, 3\)"),
        (torch.zeros(0, 0), r"kernel .*\(0, 0\)"),
        (2 * torch.eye(2), "diagonal"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "semi-definite.*-0.5"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "kernel .*row 0"),
    ],
)
def test_vendi_refuses_what_is_no_kernel(kernel, named):
    with pytest.raises(ValueError, match=named):
        vendi_score_of_kernel(kernel)


@pytest.mark.parametrize("order", [-1, -math.inf, math.nan])
def test_vendi_refuses_a_negative_order(order):
    with pytest.raises(ValueError, match="order"):
        vendi_score(torch.eye(2), order)
    with pytest.raises(ValueError, match="order"):
        vendi_score_of_kernel(torch.eye(2), order)


def test_rke_by_hand_for_two_pictures():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    off = math.exp(-25 / (2 * 2.5**2))
    assert rke(rows, 2.5) == pytest.approx(4 / (2 + 2 * off**2))


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_rke_is_the_vendi_score_of_order_two_of_its_kernel(n, d):
    rows = draw(n, d)
    kernel = torch.tensor([[math.exp(-(a - b).square().sum() / 8) for b in rows] for a in rows])
    assert rke(rows, 2) == pytest.approx(vendi_score_of_kernel(kernel, 2), rel=1e-6)


def test_rke_counts_modes_in_a_set_of_more_than_one_chunk():
    modes = 100 * torch.eye(3)
    assert rke(modes.repeat(700, 1), 1) == pytest.approx(3)


@pytest.mark.parametrize("bandwidth", [0, -1, math.nan, math.inf])
def test_rke_refuses_a_bandwidth_that_is_none(bandwidth):
    with pytest.raises(ValueError, match="bandwidth"):
        rke(torch.eye(3), bandwidth)


@pytest.mark.parametrize(("n", "d"), SHAPES[1:])
def test_mean_similarity_is_that_over_pairs(n, d):
    rows = draw(n, d)
    kernel = cosines(rows)
    expected = np.mean([kernel[i, j] for j in range(n) for i in range(j)])
    assert mean_pairwise_similarity(rows) == pytest.approx(expected, abs=1e-12)


def test_mean_similarity_closed_forms():
    assert mean_pairwise_similarity(torch.ones(5, 3)) == pytest.approx(1)
    assert mean_pairwise_similarity(torch.eye(5)) == pytest.approx(0)
    assert mean_pairwise_similarity(torch.tensor([[2.0], [-1.0]])) == pytest.approx(-1)
    with pytest.raises(ValueError, match="N >= 2"):
        mean_pairwise_similarity(torch.ones(1, 3))
