"""What the program and the machine around us set: torch's settings, and the end of memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

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
