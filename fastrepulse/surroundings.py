"""What the program and the machine around us set: torch's settings, and the end of memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

CPU = torch.device("cpu")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Computes without autocast, inference mode, gradients and a default device of somebody else.

    The default dtype is the whole process's and cannot be put aside: our tensors name theirs.
    """
    with ExitStack() as aside:
        aside.enter_context(torch.inference_mode(False))
        aside.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                aside.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != CPU:
            aside.enter_context(CPU)
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolves in float32 where cuDNN would round to TF32: a GPU's embeddings are the CPU's."""
    if not torch.cuda.is_initialized():
        # Nothing lies on a GPU
        yield
        return
    cudnn = torch.backends.cudnn
    same = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with cudnn.flags(enabled=cudnn.enabled, allow_tf32=False, **same):
        yield


def is_at_hand(tensor: Tensor) -> bool:
    """Says whether reading a tensor makes the host wait for no other device."""
    return tensor.device.type == "cpu"


def ran_out(error: BaseException) -> bool:
    """Says whether an error means that there was not enough memory, of a GPU or of the host.

    That of a graph while it is compiled or captured comes inside another one.
    """
    inner = getattr(error, "inner_exception", None) or error.__cause__
    return (
        (inner is not None and ran_out(inner))
        or isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
