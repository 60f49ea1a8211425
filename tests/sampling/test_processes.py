"""Processes of a shared run: one is killed, and torchrun starts the command line."""

import os
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file

import fastrepulse
from fastrepulse.sampling.output import CHECKPOINTS
from helpers import shared_runs
from helpers.torchrun import ENVIRONMENT, JOB, files_in, torchrun


def test_a_process_that_is_killed_is_named_and_the_run_goes_on(tmp_path):
    expected = tmp_path / "expected"
    shared_runs.draw(expected, num_inference_steps=shared_runs.STEPS)
    # Without torchrun, which would stop the other processes before they report
    base = ENVIRONMENT | {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    base["MASTER_PORT"] = str(20_000 + os.getpid() % 10_000)
    command = [sys.executable, str(JOB), str(tmp_path), "killed"]
    processes = [subprocess.Popen(command, env=base | {"RANK": str(rank)}) for rank in range(3)]
    assert processes[1].wait(300) == -signal.SIGKILL
    for rank in (0, 2):
        # Counted from the kill, so that the time of imports does not matter
        processes[rank].wait(60)
        assert "rank 1 does not answer" in (tmp_path / f"message-{rank}").read_text("utf-8")
    assert list((tmp_path / "killed").glob(CHECKPOINTS))
    # On another number of processes
    fastrepulse.resume(tmp_path / "killed", device="cpu", progress=False)
    assert files_in(tmp_path / "killed") == files_in(expected)


def test_torchrun_starts_the_command_line(tmp_path):
    command = ["-m", "fastrepulse", "sample", "a planet", "-n", "3", "--num-inference-steps", "1"]
    done = torchrun(2, *command, "--out", "drawn", "--seed", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("repelled in") == 1 and done.stderr.count("denoise:   0%") == 1
    alone = fastrepulse.sample("a planet", 3, num_inference_steps=1, seed=1, progress=False)
    assert len(alone.images) == len(list((tmp_path / "drawn").glob("[0-9]*.png"))) == 3


@pytest.mark.slow
def test_checkpoints_of_processes_hold_all_particles(tmp_path):
    done = torchrun(2, str(JOB), str(tmp_path), "killed")
    assert done.returncode != 0
    assert "exitcode  : -9" in done.stderr and "rank      : 1" in done.stderr
    newest = sorted((tmp_path / "killed").glob(CHECKPOINTS))[-1]
    assert load_file(newest)["x"].shape == (6, 4, 8, 8)
