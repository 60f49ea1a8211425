"""Recognises out-of-memory errors, and retries in smaller batches after one."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def ran_out(error: BaseException) -> bool:
    """Whether an error means that a GPU or the host had too little memory.

    Compiling or capturing a graph wraps such an error in another one.
    """
    inner = getattr(error, "inner_exception", None) or error.__cause__
    return (
        (inner is not None and ran_out(inner))
        or isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def in_batches(
    function: Callable[..., T],
    rows: Sequence[Tensor],
    size: int,
    on_halving: Callable[[int], None] = lambda size: None,
) -> Iterator[T]:
    """Yields the function's output for one batch of rows after the other.

    A batch that runs out of memory is tried again at half the size, and so are the batches after
    it.

    Args:
        function: Takes one tensor for each of `rows`.
        rows: Tensors of equal length.
        size: The batch size.
        on_halving: Receives the new batch size, to log it or to keep it for the next call.

    Raises:
        Exception: What the function raises, if memory did not run out or the size is 1.
    """
    done = 0
    while done < len(rows[0]):
        batch = [tensor[done : done + size] for tensor in rows]
        try:
            output, fits = function(*batch), True
        except Exception as error:
            if not ran_out(error) or size == 1:
                raise
            fits = False
        if fits:
            yield output
            del output
            done += len(batch[0])
        else:
            # Outside the except block: the error's traceback keeps the failed call's tensors alive
            torch.cuda.empty_cache()
            size //= 2
            on_halving(size)
