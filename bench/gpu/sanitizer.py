"""Runs the kernels under NVIDIA's compute-sanitizer, which finds bad accesses and races."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from bench.gpu.checkout import ROOT

SECONDS = 100
"""Time limit of each tool."""


def sanitizer(device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """Runs every kernel on small shapes under each tool."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:{home}/bin")
    if device != "cuda" or program is None:
        missing = "compute-sanitizer is not installed" if device == "cuda" else "needs a GPU"
        yield {"what": "sanitizer", "skipped": missing}
        return
    for tool in ("memcheck", "racecheck"):
        with tempfile.TemporaryDirectory() as folder:
            command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable]
            command += ["-m", "bench.gpu", "--smoke", "--sections", "correctness", "--out", folder]
            try:
                done = subprocess.run(
                    command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
                )
            except subprocess.TimeoutExpired:
                yield {"what": "sanitizer", "tool": tool, "says": f"nothing in {SECONDS} s"}
                continue
        said = [line for line in done.stdout.splitlines() if line.startswith("========")]
        yield {"what": "sanitizer", "tool": tool, "says": said[-1] if said else done.stderr[-200:]}
        if done.returncode:
            raise AssertionError(f"{tool} found errors:\n{done.stdout[-3000:]}")
