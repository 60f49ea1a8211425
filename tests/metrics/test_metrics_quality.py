"""Fréchet distance, kernel distance, recall and coverage."""

import math
import statistics

import numpy as np
import pytest
import torch

from fastrepulse.metrics import (
    SmallSetWarning,
    frechet_distance,
    kernel_distance,
    recall_and_coverage,
)


def draw(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(n, mean, deviations, seed=0):
    """Uncorrelated rows with exactly this mean and these standard deviations."""
    rows = draw(n, len(mean), seed)
    rows = rows - rows.mean(0)
    whitening = torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T)))
    return rows @ whitening.T * torch.tensor(deviations) + torch.tensor(mean)


def dense(a, b):
    """The Fréchet distance by the eigenvalues of the product of the d x d covariances."""
    a, b = a.numpy(), b.numpy()
    product = np.cov(a.T) @ np.cov(b.T)
    cross = np.sqrt(np.linalg.eigvals(product).real.clip(0)).sum()
    traces = np.cov(a.T).trace() + np.cov(b.T).trace()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * cross


def test_frechet_distance_to_itself_is_zero_and_to_a_shifted_copy_the_squared_shift():
    rows = draw(50, 4)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + 2) == pytest.approx(16)


def test_frechet_distance_of_a_scaled_set():
    rows = draw(30, 1)
    deviation = (2 * rows).std() - rows.std()
    shift = (2 * rows).mean() - rows.mean()
    expected = (deviation**2 + shift**2).item()
    assert frechet_distance(rows, 2 * rows) == pytest.approx(expected)


def test_frechet_distance_of_known_gaussians():
    a = gaussian(40, [1.0, 0.0, 2.0], [1.0, 2.0, 3.0])
    b = gaussian(25, [0.0, 0.0, 4.0], [2.0, 2.0, 7.0], seed=1)
    # 1 + 4 for the means, (2 - 1)^2 + 0 + (7 - 3)^2 for the deviations
    assert frechet_distance(a, b) == pytest.approx(22)


@pytest.mark.parametrize(
    ("m", "n", "d"),
    [
        pytest.param(200, 50, 3, id="M200-N50-d3"),
        pytest.param(90, 60, 33, id="M90-N60-d33"),
        pytest.param(34, 33, 32, id="M34-N33-d32"),
    ],
)
def test_frechet_distance_equals_the_dense_formula(m, n, d):
    a, b = draw(m, d) @ draw(d, d, 1), draw(n, d, 2) @ draw(d, d, 3) + 1
    assert frechet_distance(a, b) == pytest.approx(dense(a, b), rel=1e-6)


@pytest.mark.parametrize(
    ("m", "n", "d"),
    [
        pytest.param(2, 2, 5, id="M2-N2-d5"),
        pytest.param(7, 90, 33, id="M7-N90-d33"),
        pytest.param(33, 20, 33, id="M33-N20-d33"),
    ],
)
def test_frechet_distance_of_small_sets_equals_the_dense_formula_and_warns(m, n, d):
    a, b = draw(m, d), 2 * draw(n, d, 1) + 1
    with pytest.warns(SmallSetWarning, match=f"a has {m} rows of {d} features"):
        distance = frechet_distance(a, b, allow_small_sets=True)
    # A loose tolerance: the dense formula takes roots of eigenvalues that are rounding errors
    assert distance == pytest.approx(dense(a, b), rel=1e-5)


def test_frechet_distance_of_500_images_in_the_gram_space():
    rows = draw(500, 2080).float()
    with pytest.warns(SmallSetWarning, match="a has 500 rows of 2080 features and b has 500"):
        distance = frechet_distance(rows, 2 * rows, allow_small_sets=True)
    expected = rows.double().var(0).sum() + rows.double().mean(0).square().sum()
    assert distance == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (torch.zeros(9, 2), torch.zeros(9, 3), r"a and b .*\(9, 2\) and \(9, 3\)"),
        (torch.zeros(3, 3), torch.zeros(9, 3), "a has 3 rows of 3"),
        (torch.zeros(9, 3), torch.zeros(3, 3), "b has 3 rows of 3"),
        (torch.zeros(9), torch.zeros(9, 3), r"a .*\(9,\)"),
        (torch.zeros(9, 3), torch.zeros(1, 3), r"b .*\(1, 3\)"),
        (torch.zeros(9, 3), torch.full((9, 3), math.inf), "b .*row 0"),
    ],
)
def test_frechet_distance_refuses_bad_sets(a, b, named):
    with pytest.raises(ValueError, match=named):
        frechet_distance(a, b)


def kernel(x, y):
    return (x @ y / len(x) + 1) ** 3


@pytest.mark.parametrize(
    ("m", "n", "d"),
    [
        pytest.param(2, 2, 1, id="M2-N2-d1"),
        pytest.param(7, 5, 3, id="M7-N5-d3"),
        pytest.param(3, 13, 65, id="M3-N13-d65"),
    ],
)
def test_kernel_distance_equals_its_definition(m, n, d):
    a, b = draw(m, d).numpy(), draw(n, d, 1).numpy() + 0.3
    within_a = np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    within_b = np.mean([kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    between = np.mean([kernel(x, y) for x in a for y in b])
    expected = within_a + within_b - 2 * between
    got = kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx(expected, abs=1e-12)


def test_kernel_distance_of_sets_larger_than_a_chunk():
    a, b = draw(1500, 2), draw(1100, 2, 1)
    direct = [((x @ y.T / 2 + 1) ** 3) for x, y in ((a, a), (b, b), (a, b))]
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in direct[:2]]
    expected = within[0] + within[1] - 2 * direct[2].mean()
    assert kernel_distance(a, b) == pytest.approx(expected.item(), abs=1e-11)


def test_kernel_distance_is_unbiased_for_small_sets():
    halves = draw(2000, 40).view(200, 10, 40)
    drawn = [kernel_distance(rows[:5], rows[5:]) for rows in halves]
    error = statistics.stdev(drawn) / len(drawn) ** 0.5
    assert abs(statistics.mean(drawn)) < 3 * error
    # An estimate that pairs an image with itself is off by about 2 (8 - 1) / 5
    assert error < 0.1


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (torch.zeros(9, 2), torch.zeros(9, 3), "a and b"),
        (torch.zeros(1, 3), torch.zeros(9, 3), r"a .*N >= 2.*\(1, 3\)"),
        (torch.zeros(9, 3), torch.zeros(9), r"b .*\(9,\)"),
    ],
)
def test_kernel_distance_refuses_bad_sets(a, b, named):
    with pytest.raises(ValueError, match=named):
        kernel_distance(a, b)


def test_recall_and_coverage_of_points_on_a_line():
    reference = torch.tensor([[0.0], [1], [2], [3]])  # balls of radius 1
    features = torch.tensor([[0.5], [3.5], [10], [11]])  # balls of radius 3, 3, 1, 1
    # 0.5 lies in the balls of 0 and 1, 3.5 in the ball of 3, 10 and 11 in no ball
    assert recall_and_coverage(features, reference, k=1) == (1, 3 / 4)
    # 10 lies in no ball, 1 and 3 in the ball of 2
    features = torch.tensor([[10.0], [11], [2], [2.5]])
    assert recall_and_coverage(features, reference, k=1) == (2 / 4, 3 / 4)


def test_balls_reach_to_the_kth_neighbour():
    reference = torch.tensor([[0.0], [1], [3], [7]])  # second neighbours at 3, 2, 3, 6
    features = torch.tensor([[-2.5], [-10], [-20], [-30]])  # at 17.5, 10, 10, 20
    assert recall_and_coverage(features, reference, k=2) == (1, 1 / 4)


@pytest.mark.parametrize("k", [1, 5])
def test_recall_and_coverage_of_identical_and_of_separated_sets(k):
    rows = draw(23, 3)
    assert recall_and_coverage(rows, rows, k) == (1, 1)
    assert recall_and_coverage(rows, rows + 1000, k) == (0, 0)


def test_copies_of_one_image_have_low_recall_and_coverage():
    reference = draw(200, 2)
    recall, coverage = recall_and_coverage(reference[:1].repeat(50, 1), reference)
    assert recall == 1 / 200
    assert 0 < coverage < 0.1


@pytest.mark.parametrize(
    ("features", "reference", "k", "named"),
    [
        (torch.zeros(9, 2), torch.zeros(9, 3), 5, "features and reference"),
        (torch.zeros(5, 3), torch.zeros(9, 3), 5, r"features .*N >= 6.*\(5, 3\)"),
        (torch.zeros(9, 3), torch.zeros(3, 3), 3, r"reference .*N >= 4.*\(3, 3\)"),
        (torch.zeros(9, 3), torch.zeros(9, 3), 0, "k must"),
    ],
)
def test_recall_and_coverage_refuse_sets_without_k_neighbours(features, reference, k, named):
    with pytest.raises(ValueError, match=named):
        recall_and_coverage(features, reference, k)
