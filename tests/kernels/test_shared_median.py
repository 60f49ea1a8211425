"""The median that several processes find together, here threads that add up their counts."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastrepulse.kernels import median_bandwidth, shared, shared_median_bandwidth
from helpers.drawn import draw_rows
from helpers.tolerances import AGAINST_FLOAT64


def together(x, parts):
    """Returns what each of some processes finds."""
    barrier, given = threading.Barrier(parts, timeout=60), [None] * parts

    def find(part):
        def total(counts):
            given[part] = counts
            barrier.wait()
            summed = torch.stack(given).sum(dim=0)
            barrier.wait()
            return summed

        return shared_median_bandwidth(x, part, parts, total)

    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(find, range(parts)))


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
def test_it_is_the_same_at_any_split(backend, n, d, dtype):
    x = draw_rows(n, d, dtype)
    # Ties, and particles in one place
    x[1::3] = x[0]
    split = [h for parts in (1, 2, 3, 5) for h in together(x, parts)]
    assert all(torch.equal(h, split[0]) for h in split)
    rtol, atol = AGAINST_FLOAT64[dtype]
    expected = median_bandwidth(x.double(), backend="reference")
    torch.testing.assert_close(split[0].double(), expected, rtol=10 * rtol, atol=10 * atol)


def test_it_is_that_of_one_process():
    for n in (50, 700):
        x = draw_rows(n, 48)
        assert torch.equal(together(x, 3)[0], median_bandwidth(x, backend="native"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_a_number(backend, value):
    x = draw_rows(40, 3)
    x[:] = value
    assert all(h.isnan() for h in together(x, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_counted_in_single(backend, dtype):
    x = draw_rows(90, 16, dtype)
    got = together(x, 2)[0]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, median_bandwidth(x.float()), rtol=1e-4, atol=1e-4)
