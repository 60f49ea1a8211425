"""Starts the processes of shared runs."""

import os
import subprocess
import sys
from pathlib import Path

from helpers import shared_runs

JOB = Path(shared_runs.__file__)
PATHS = [str(JOB.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS)}


def torchrun(processes, *arguments, cwd=None):
    """Runs torchrun on this machine; returns the finished process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, cwd=cwd
    )


def files_in(folder):
    """Returns the bytes of all files of a folder by name."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
