import math

import pytest
import torch

from fastrepulse.metrics import frechet_distance, vendi_score


def draw(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_vendi_of_copies_is_one_and_of_orthogonal_rows_their_number(n):
    assert vendi_score(torch.ones(n, 3)) == pytest.approx(1)
    assert vendi_score(3 * torch.eye(n, 9)) == pytest.approx(n)


def test_vendi_of_two_pairs_of_copies_is_two():
    rows = torch.tensor([[1.0, 0], [5.0, 0], [0, 1.0], [0, 2.0]])
    assert vendi_score(rows) == pytest.approx(2)


def test_vendi_by_hand_at_an_angle():
    cosine = 0.6
    rows = torch.tensor([[1.0, 0.0], [cosine, 0.8]], dtype=torch.float64)
    a, b = (1 + cosine) / 2, (1 - cosine) / 2
    assert vendi_score(rows) == pytest.approx(math.exp(-a * math.log(a) - b * math.log(b)))


def test_vendi_dual_equals_primal():
    rows = draw(40, 6)
    padded = torch.cat([rows, torch.zeros(40, 60, dtype=rows.dtype)], dim=1)
    assert vendi_score(rows) == pytest.approx(vendi_score(padded), rel=1e-9)


@pytest.mark.parametrize(
    ("features", "named"),
    [
        (torch.zeros(3), r"\(3,\)"),
        (torch.zeros(0, 3), r"\(0, 3\)"),
        (torch.tensor([[1.0], [0.0]]), "row 1"),
        (torch.tensor([[math.nan], [1.0]]), "row 0"),
    ],
)
def test_vendi_refuses_what_has_no_direction(features, named):
    with pytest.raises(ValueError, match=named):
        vendi_score(features)


def test_frechet_of_a_set_with_itself_is_zero_and_of_a_shift_its_square():
    rows = draw(50, 4)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + 2) == pytest.approx(16)


def test_frechet_by_hand_for_a_scaling():
    rows = draw(30, 1)
    spread = (2 * rows).std() - rows.std()
    shift = (2 * rows).mean() - rows.mean()
    expected = (spread**2 + shift**2).item()
    assert frechet_distance(rows, 2 * rows) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (torch.zeros(9, 2), torch.zeros(9, 3), "got"),
        (torch.zeros(3, 3), torch.zeros(9, 3), "3 rows of 3"),
        (torch.zeros(9), torch.zeros(9, 3), "got"),
    ],
)
def test_frechet_refuses_what_it_cannot_compare(a, b, named):
    with pytest.raises(ValueError, match=named):
        frechet_distance(a, b)
