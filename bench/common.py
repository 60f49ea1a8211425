"""What benchmarks and their reports share: where they ran, and their timings."""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from fastrepulse import native


def processor() -> str:
    """Returns the name of the processor, as far as the system knows one."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> str:
    """Returns one line on the machine, the instruction set of our CPU kernels and the libraries."""
    import diffusers

    return (
        f"Measured on {torch.get_num_threads()} CPU threads ({processor()}, "
        f"{native.cpu_capability()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}."
    )


def now(device_type: str) -> float:
    """Returns the time, in seconds, at which a device is done with what it was given."""
    if device_type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def label_shapes(axis: Any, shapes: list[tuple[int, int]]) -> None:
    """Names the shapes (N, d) along an axis of a plot: N^2 d alone does not order the times."""
    axis.set_xticks(range(len(shapes)), [f"{n:,}\n{d:,}" for n, d in shapes], fontsize=7)
    axis.set(xlabel="N, and d below it", ylabel="median time of a call, ms", yscale="log")


def read_timings(description: str | None, kind: str) -> list[dict[str, Any]]:
    """Returns the timings of the files that the command line names which say what `kind` is."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("timings", type=Path, nargs="+")
    files = parser.parse_args().timings
    timings = [timing for file in files for timing in json.loads(file.read_text())["benchmarks"]]
    return [timing for timing in timings if kind in timing["extra_info"]]
