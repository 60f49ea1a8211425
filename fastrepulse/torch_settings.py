"""Overrides settings of torch that change results, and restores them afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

CPU = torch.device("cpu")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Turns off autocast, inference mode, gradients and the default device of the caller.

    The default dtype belongs to the whole process, so our code names every tensor's dtype instead.
    """
    with ExitStack() as settings:
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                settings.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != CPU:
            settings.enter_context(CPU)
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Keeps cuDNN from rounding float32 to TF32, so that embeddings agree with the CPU's."""
    if not torch.cuda.is_initialized():
        # There are no tensors on a GPU
        yield
        return
    cudnn = torch.backends.cudnn
    unchanged = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    with cudnn.flags(**unchanged, allow_tf32=False):
        yield
