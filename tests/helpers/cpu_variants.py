"""Runs the CPU kernels with a given instruction set or number of threads."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
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
    output, errors = _run_with_all(test_file, checks)
    used = dict(line.split(" ", 1) for line in output.splitlines())
    assert used.get(capability), errors
    if used[capability] != capability:
        pytest.skip(f"this processor has no {capability}")


@cache
def _run_with_all(test_file: str, checks: str) -> tuple[str, str]:
    """Runs checks with every instruction set; returns what the new processes wrote.

    The first process imports torch and forks before the library chooses its instruction set. A line
    of the output names a capability and, if the checks passed, the one that was used.
    """
    path = Path(test_file)
    program = (
        "import os, sys\n"
        "import pytest, fastrepulse.models, fastrepulse.kernels\n"
        "from fastrepulse import native\n"
        f"sys.path[:0] = {[str(path.parent), str(Path(__file__).parents[1])]!r}\n"
        f"for capability in {CAPABILITIES!r}:\n"
        "    print(capability, end=' ', flush=True)\n"
        "    if not os.fork():\n"
        "        os.environ['FASTREPULSE_CPU_CAPABILITY'] = capability\n"
        f"        from {path.stem} import *\n"
        f"        exec({checks!r})\n"
        "        print(native.cpu_capability(), end='', flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "    print(flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout, done.stderr


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets the number of torch threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
