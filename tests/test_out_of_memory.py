import gc
import weakref

import pytest
import torch

from fastrepulse.out_of_memory import in_batches, ran_out


def wrapped(error):
    """The error as `torch.compile` raises it while it captures a graph."""
    try:
        raise RuntimeError("the graph could not be captured") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (wrapped(torch.OutOfMemoryError()), True),
        (RuntimeError("broken"), False),
        (wrapped(ValueError("broken")), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_out_of_memory_errors_are_recognised(error, expected):
    assert ran_out(error) == expected


def test_the_batch_size_is_halved_and_stays_halved():
    rows, seen, sizes = torch.arange(11.0), [], []

    def double(own, other):
        seen.append(len(own))
        if len(own) > 3:
            raise torch.OutOfMemoryError
        return own + other

    outputs = list(in_batches(double, (rows, rows), 8, sizes.append))
    assert torch.equal(torch.cat(outputs), 2 * rows)
    assert sizes == [4, 2]
    assert seen == [8, 4, 2, 2, 2, 2, 2, 1]


def test_an_error_is_raised_if_one_row_does_not_fit_or_memory_did_not_run_out():
    def fail(own):
        seen.append(len(own))
        raise error

    for error, expected in ((MemoryError(), [4, 2, 1]), (RuntimeError("broken"), [4])):
        seen = []
        with pytest.raises(type(error)):
            list(in_batches(fail, [torch.zeros(9)], 4))
        assert seen == expected


def test_the_failed_call_frees_its_tensors_and_the_cache_before_the_retry(monkeypatch):
    emptied, kept = [], []

    def function(own):
        if len(own) > 1:
            large = torch.zeros(5)
            kept.append(weakref.ref(large))
            raise torch.OutOfMemoryError
        assert kept[0]() is None and emptied
        return own

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(kept[0]() is None))
    gc.disable()
    try:
        assert len(list(in_batches(function, [torch.zeros(2)], 2))) == 2
    finally:
        gc.enable()
    assert emptied == [True]
