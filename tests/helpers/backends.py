"""Where the pairwise operations are tested: by every backend, on every device of this machine."""

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
    """Skips a test of what a backend does not compute: no GPU kernel takes float64."""
    reason = None if device == "cpu" else why_not(backend, device, dtype)
    if reason:
        pytest.skip(f"{backend} on {device}: {reason}")
