"""What benchmarks and their reports share: where they ran, and their timings."""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

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


def read_timings(description: str | None, kind: str) -> list[dict[str, Any]]:
    """Returns the timings of the file that the command line names which say what `kind` is."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("timings", type=Path)
    timings = json.loads(parser.parse_args().timings.read_text())["benchmarks"]
    return [timing for timing in timings if kind in timing["extra_info"]]
