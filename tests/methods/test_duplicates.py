"""Particles that coincide are found and moved apart."""

import pytest
import torch

from fastrepulse.methods import duplicates
from fastrepulse.methods.duplicates import find_duplicates, separate_duplicates


@pytest.fixture(params=[True, False], ids=["at-hand", "as-on-a-gpu"])
def at_hand(request, monkeypatch):
    """Whether what was computed can be read without waiting for a device."""
    monkeypatch.setattr(duplicates, "is_at_hand", lambda tensor: request.param)
    return request.param


def test_only_duplicates_are_nudged(at_hand, monkeypatch):
    monkeypatch.setattr(duplicates, "ROWS", 2)
    embedded = torch.randn(5, 3)
    assert torch.equal(separate_duplicates(embedded, 0, 1.0), embedded)
    embedded[4] = embedded[1]
    nudged = separate_duplicates(embedded, 0, 1.0)
    assert torch.equal(nudged[[0, 2, 3]], embedded[[0, 2, 3]])
    assert not torch.equal(nudged[1], nudged[4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (9, 5), (300, 48)])
def test_rows_that_are_there_twice_are_found(n, d, dtype, at_hand, monkeypatch):
    monkeypatch.setattr(duplicates, "ROWS", 7)
    generator = torch.Generator().manual_seed(n)
    # Few numbers, zeros of both signs among them, so that many rows are alike
    rows = torch.randint(-1, 2, (n, d), generator=generator).to(dtype) * 0.3
    rows[::2] = rows[torch.randint(n, (len(rows[::2]),), generator=generator)] * 1.0
    rows[-1] = -rows[-1] if not rows[-1].any() else rows[-1]
    _, group, sizes = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    double = find_duplicates(rows)
    assert (double is None) == (at_hand and sizes.max().item() == 1)
    assert double is None or torch.equal(double, sizes[group] > 1)
