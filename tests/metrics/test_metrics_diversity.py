"""The Vendi score and the mean pairwise similarity."""

import math

import numpy as np
import pytest
import torch

from fastrepulse.metrics import (
    mean_pairwise_similarity,
    vendi_score,
    vendi_score_of_kernel,
)

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


@pytest.mark.parametrize("n", [1, 2, 7])
def test_copies_score_one_and_orthogonal_rows_score_their_number(n):
    scales = torch.arange(1.0, n + 1)[:, None]
    assert vendi_score(scales * torch.tensor([[0.1, 0.2, 0.3]])) == pytest.approx(1)
    assert vendi_score(3 * torch.eye(n, 9)) == pytest.approx(n)
    assert vendi_score_of_kernel(torch.ones(n, n)) == pytest.approx(1)
    assert vendi_score_of_kernel(torch.eye(n)) == pytest.approx(n)


def test_two_pairs_of_copies_score_two():
    rows = torch.tensor([[1.0, 0], [5.0, 0], [0, 1.0], [0, 2.0]])
    assert vendi_score(rows) == pytest.approx(2)


def test_vendi_score_of_two_rows_with_cosine_0_6():
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    expected = math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    assert vendi_score(rows) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_vendi_score_equals_the_entropy_of_numpys_eigenvalues(n, d):
    rows = draw(n, d) + 0.5
    values = np.linalg.eigvalsh(cosines(rows).numpy() / n)
    values = values[values > 1e-9]
    expected = np.exp(-(values * np.log(values)).sum())
    assert vendi_score(rows) == pytest.approx(expected, rel=1e-8)
    assert vendi_score_of_kernel(cosines(rows)) == pytest.approx(expected, rel=1e-8)


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
def test_vendi_score_refuses_rows_without_a_direction(features, named):
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
def test_vendi_score_of_kernel_refuses_other_matrices(kernel, named):
    with pytest.raises(ValueError, match=named):
        vendi_score_of_kernel(kernel)


@pytest.mark.parametrize(("n", "d"), SHAPES[1:])
def test_mean_similarity_equals_the_mean_over_pairs(n, d):
    rows = draw(n, d)
    kernel = cosines(rows)
    expected = np.mean([kernel[i, j] for j in range(n) for i in range(j)])
    assert mean_pairwise_similarity(rows) == pytest.approx(expected, abs=1e-12)


def test_mean_similarity_of_known_sets():
    assert mean_pairwise_similarity(torch.ones(5, 3)) == pytest.approx(1)
    assert mean_pairwise_similarity(torch.eye(5)) == pytest.approx(0)
    assert mean_pairwise_similarity(torch.tensor([[2.0], [-1.0]])) == pytest.approx(-1)
    with pytest.raises(ValueError, match="N >= 2"):
        mean_pairwise_similarity(torch.ones(1, 3))
