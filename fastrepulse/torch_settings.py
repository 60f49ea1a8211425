"""Overrides settings of torch that change results, and restores them afterwards."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

CPU = torch.device("cpu")
LIMITED = ("mps",)
"""Types of devices without float64 and without some operators."""


def is_limited(device: torch.device) -> bool:
    """Whether a device lacks float64, `pdist` and `eigh`."""
    return device.type in LIMITED


def precise_dtype(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 where a device lacks float64."""
    return torch.float32 if is_limited(device) else torch.float64


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


def settings_of_this_thread() -> Callable[[], AbstractContextManager[None]]:
    """Returns a context manager that gives another thread the settings of this one."""
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    device, cached = torch.get_default_device(), torch.is_autocast_cache_enabled()
    kinds = ("cpu", "cuda", "mps", "xpu")
    autocast = [
        (kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)
    ]
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    @contextmanager
    def same() -> Iterator[None]:
        with ExitStack() as settings:
            settings.enter_context(torch.inference_mode(inference))
            settings.enter_context(torch.set_grad_enabled(gradients))
            for kind, dtype in autocast:
                settings.enter_context(torch.autocast(kind, dtype, cache_enabled=cached))
            if device != CPU:
                settings.enter_context(device)
            if stream is not None:
                # The stream's device becomes the current one
                settings.enter_context(torch.cuda.stream(stream))
            yield

    return same


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
