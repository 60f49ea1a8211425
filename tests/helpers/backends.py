"""The backends and devices on which the pairwise operations are tested."""

import pytest
import torch

from fastrepulse.kernels.dispatch import why_not

BACKENDS = {"cpu": ("native", "reference")}
if torch.cuda.is_available():
    BACKENDS["cuda"] = ("native", "triton", "reference")

PLACES = [
    pytest.param(device, backend, id=f"{device}-{backend}")
    for device, backends in BACKENDS.items()
    for backend in backends
]


def skip_unless_served(device, backend, dtype):
    """Skips the test if a GPU backend does not support the dtype (none takes float64)."""
    reason = None if device == "cpu" else why_not(backend, device, dtype)
    if reason:
        pytest.skip(f"{backend} on {device}: {reason}")
