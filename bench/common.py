"""Helpers of the benchmarks and reports: the environment, clocks and timings files."""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from fastrepulse import native


def processor() -> str:
    """Returns the processor's name if the system reports one, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> str:
    """Returns one line: the machine, the instruction set of our CPU kernels, library versions."""
    import diffusers

    return (
        f"Measured on {torch.get_num_threads()} CPU threads ({processor()}, "
        f"{native.cpu_capability()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}."
    )


def now(device_type: str) -> float:
    """Waits for the device and returns the time in seconds."""
    if device_type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def label_shapes(axis: Any, shapes: list[tuple[int, int]]) -> None:
    """Labels an axis with shapes (N, d), because N^2 d alone does not order the times."""
    axis.set_xticks(range(len(shapes)), [f"{n:,}\n{d:,}" for n, d in shapes], fontsize=7)
    axis.set(xlabel="N, and d below it", ylabel="median time of a call, ms", yscale="log")


def read_timings(description: str | None, kind: str) -> list[dict[str, Any]]:
    """Reads the files named on the command line; returns timings whose extra info has `kind`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("timings", type=Path, nargs="+")
    files = parser.parse_args().timings
    timings = [timing for file in files for timing in json.loads(file.read_text())["benchmarks"]]
    return [timing for timing in timings if kind in timing["extra_info"]]
