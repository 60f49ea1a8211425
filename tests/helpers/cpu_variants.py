"""Runs the CPU kernels with a given instruction set or number of threads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

CAPABILITIES = ("baseline", "avx2", "avx512")


def run_with(capability: str, test_file: str, checks: str) -> None:
    """Runs checks in a new process with an instruction set; skips if the processor lacks it.

    Args:
        capability: One of `CAPABILITIES`.
        test_file: Path of a test file; the checks can use its names.
        checks: Python statements.
    """
    path = Path(test_file)
    program = (
        f"import sys; sys.path[:0] = {[str(path.parent), str(Path(__file__).parents[1])]!r}\n"
        f"from {path.stem} import *\n"
        "from fastrepulse import native\n"
        f"{checks}\n"
        "print(native.cpu_capability())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FASTREPULSE_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() != capability:
        pytest.skip(f"this processor has no {capability}")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets the number of torch threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
