import math
from functools import cache

import pytest
import torch

from fastrepulse.kernels import median_bandwidth, median_sq_distance
from helpers.backends import BACKENDS, PLACES, skip_unless_served

SHAPES = [
    pytest.param(n, d, id=f"N{n}-d{d}")
    for n, d in [
        *((2, 1), (3, 4), (4, 5), (17, 63), (64, 64), (127, 5), (300, 1), (1000, 16)),
        *((40, 600), (500, 768), (3, 16384)),
    ]
]


def integers(n, d, high, seed=0):
    """Returns embeddings with squared distances that are exact in float32, also after centring."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-high, high + 1, (n, d), generator=generator).float()
    # Rows come in pairs x and -x: the mean is zero and centring is exact
    return torch.cat([x, -x])[torch.randperm(2 * n, generator=generator)]


@cache
def integers_and_distances(n, d):
    """Returns integer embeddings and the sorted squared distances of their pairs."""
    x = integers(n, d, 8 if d < 64 else 2)
    return x, torch.pdist(x.double()).square().round().sort().values


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("device", BACKENDS)
def test_the_quantile_equals_sorting_bit_for_bit(n, d, quantile, dtype, device):
    x, distances = integers_and_distances(n, d)
    expected = distances[int(quantile * (len(distances) - 1))]
    # Half precision cannot hold a sum of many squares
    got = median_sq_distance(x.to(dtype).to(device), quantile)
    assert got.double() == expected.to(dtype).double()


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_random_embeddings_match_pdist(n, d, dtype, device, backend):
    skip_unless_served(device, backend, dtype)
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=dtype)
    expected = torch.pdist(x.double()).square().median().item()
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    found = median_sq_distance(x.to(device), backend=backend)
    assert found.item() == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize("d", [5, 600])
def test_duplicates_have_distance_zero(d):
    x = torch.randn(1, d).expand(90, d)
    assert median_sq_distance(x) == 0
    mostly = torch.cat([x, torch.randn(20, d)])
    assert median_sq_distance(mostly) == 0
    assert median_sq_distance(mostly, 0.9) > 0


def test_more_particles_than_one_panel():
    x = torch.randn(5000, 200, generator=torch.Generator().manual_seed(2))
    expected = torch.pdist(x).square().median().item()
    assert median_sq_distance(x).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_overflowing_distances_are_infinite(dtype, device, backend):
    skip_unless_served(device, backend, dtype)
    x = torch.tensor([[2.0], [-2.0], [0.0], [1e-3]], dtype=dtype) * torch.finfo(dtype).max ** 0.5
    x = x.to(device)
    assert median_sq_distance(x, 1.0, backend=backend) == math.inf
    assert median_sq_distance(x, 0.0, backend=backend).isfinite()


def test_nan_gives_nan():
    for d in (5, 600):
        x = torch.randn(20, d)
        x[3, 2] = math.nan
        assert median_sq_distance(x).isnan()


def test_a_half_precision_bandwidth_does_not_round_to_zero():
    x = torch.full((4, 3), 1e-4, dtype=torch.float16)
    assert median_bandwidth(x) > 0
    assert median_bandwidth(torch.zeros(4, 3)) == 1


@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_the_bandwidth_does_not_depend_on_a_shift(device, backend):
    x = integers(40, 2, 8).to(device)
    here, there = (median_bandwidth(x + shift, backend=backend) for shift in (0, 4096))
    assert here == there == median_sq_distance(x) / math.log(len(x))
    # More than half of the pairs are duplicates, so the median is zero
    mostly = torch.cat([x[:1].expand(80, 2), x[1:11]])
    here, there = (median_bandwidth(mostly + shift, backend=backend) for shift in (0, 4096))
    variance = (mostly - mostly.mean(dim=0)).square().sum(dim=1).mean()
    torch.testing.assert_close(torch.stack([here, there]), (1e-4 * variance).expand(2))


def test_opcheck():
    x = torch.randn(6, 3)
    op = torch.ops.fastrepulse.median_sq_distance.default
    torch.library.opcheck(op, (x, 7, "native"))


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((torch.zeros(1, 3),), ValueError, "at least 2"),
        ((torch.zeros(3),), ValueError, r"\(3,\)"),
        ((torch.zeros(3, 3).int(),), TypeError, "int32"),
        ((torch.zeros(3, 3), 1.5), ValueError, "1.5"),
        ((torch.zeros(3, 3), math.nan), ValueError, "nan"),
    ],
)
def test_errors_name_the_bad_value(arguments, error, named):
    with pytest.raises(error, match=named):
        median_sq_distance(*arguments)
