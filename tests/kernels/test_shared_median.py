"""The median bandwidth over several ranks; threads stand in for the processes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastrepulse.kernels import median_bandwidth, shared, shared_median_bandwidth
from helpers.drawn import draw_rows
from helpers.tolerances import AGAINST_FLOAT64


def on_all_ranks(x, world_size):
    """Returns the bandwidth that each rank computes."""
    barrier, counts_of = threading.Barrier(world_size, timeout=60), [None] * world_size

    def run(rank):
        def all_reduce(counts):
            counts_of[rank] = counts
            barrier.wait()
            summed = torch.stack(counts_of).sum(dim=0)
            barrier.wait()
            return summed

        return shared_median_bandwidth(x, rank, world_size, all_reduce)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))


@pytest.fixture(params=["native", "reference"])
def backend(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(shared, "_count_digits", shared.count_digits_reference)
        monkeypatch.setattr(shared, "BLOCK", 64)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("n", "d"), [(2, 1), (3, 5), (65, 48), (300, 7), (129, 600)], ids=lambda v: str(v)
)
def test_every_world_size_gives_the_same_bandwidth(backend, n, d, dtype):
    x = draw_rows(n, d, dtype)
    # Ties and duplicates
    x[1::3] = x[0]
    found = [h for world_size in (1, 2, 3, 5) for h in on_all_ranks(x, world_size)]
    assert all(torch.equal(h, found[0]) for h in found)
    rtol, atol = AGAINST_FLOAT64[dtype]
    expected = median_bandwidth(x.double(), backend="reference")
    torch.testing.assert_close(found[0].double(), expected, rtol=10 * rtol, atol=10 * atol)


def test_the_bandwidth_equals_that_of_one_process():
    for n in (50, 700):
        x = draw_rows(n, 48)
        assert torch.equal(on_all_ranks(x, 3)[0], median_bandwidth(x, backend="native"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_inf_give_nan(backend, value):
    x = draw_rows(40, 3)
    x[:] = value
    assert all(h.isnan() for h in on_all_ranks(x, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(backend, dtype):
    x = draw_rows(90, 16, dtype)
    got = on_all_ranks(x, 2)[0]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, median_bandwidth(x.float()), rtol=1e-4, atol=1e-4)
