"""What every benchmark says of where it ran."""

import platform

import torch


def environment() -> str:
    """Returns one line on the machine and the libraries."""
    import diffusers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return (
        f"Measured on {device} with {torch.get_num_threads()} CPU threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}."
    )
