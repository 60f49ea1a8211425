"""Time and memory of a call on a device."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench.common import now


def milliseconds(call: Callable[[], Any], device: str, repeats: int = 7) -> tuple[float, float]:
    """Returns the median time of a call and the range; uses CUDA events on a GPU."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            begin = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times), max(times) - min(times)


def seconds(call: Callable[[], Any], device: str) -> float:
    """Returns the time of one call, until the device has finished."""
    begin = now(device)
    call()
    return now(device) - begin


@contextmanager
def added_memory(device: str) -> Iterator[dict[str, float]]:
    """Yields a dictionary that gets "MiB", the added peak memory on a GPU; empty on a CPU."""
    added: dict[str, float] = {}
    before = 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    yield added
    if device == "cuda":
        added["MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
