"""Several processes share a run: they write the files of one process, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fastrepulse
from fastrepulse.sampling.distributed import Ranks
from fastrepulse.sampling.output import CHECKPOINTS
from helpers import shared_runs

JOB = Path(shared_runs.__file__)
PATHS = [str(JOB.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS)}


def torchrun(processes, *arguments, cwd=None):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, cwd=cwd
    )


def files_in(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(
    scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)], ids=["two", "three"]
)
def shared(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared")
    done = torchrun(request.param, str(JOB), str(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Returns a function that draws a run in one process, once, and returns its folder."""
    out, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()

    def draw(name):
        if not (out / name).exists():
            torch.set_num_threads(1)
            shared_runs.draw(out / name, **(shared_runs.RUNS | shared_runs.ROUNDED)[name])
            torch.set_num_threads(threads)
        return out / name

    return draw


@pytest.mark.parametrize("name", shared_runs.RUNS)
def test_several_processes_write_the_files_of_one_process(name, shared, alone):
    assert files_in(shared / name) == files_in(alone(name))


@pytest.mark.parametrize("name", shared_runs.ROUNDED)
def test_sums_in_another_order_differ_by_rounding(name, shared, alone):
    drawn, expected = shared / name, alone(name)
    assert files_in(drawn).keys() == files_in(expected).keys()
    for path in sorted(expected.glob("[0-9]*.png")):
        one, other = (
            torch.tensor(list(Image.open(folder / path.name).tobytes())).float()
            for folder in (drawn, expected)
        )
        assert (one - other).abs().max() <= 2


@pytest.mark.parametrize(
    ("name", "process", "own"),
    [
        ("predict", 1, "ArithmeticError: injected"),
        ("first-process", 0, "MemoryError: injected"),
        ("interrupt", 1, "KeyboardInterrupt: "),
        ("embed", 1, "OutOfMemoryError: injected"),
        ("picture", 1, "OSError: [Errno 28] No space left"),
        ("summary", 0, "OSError: [Errno 28] No space left"),
    ],
)
def test_an_error_in_one_process_ends_all_processes_with_its_message(name, process, own, shared):
    for path in sorted(shared.glob("errors-*.json")):
        error, seconds = json.loads(path.read_text("utf-8"))[name]
        there = path.stem == f"errors-{process}"
        assert error == (own if there else f"OtherRankFailed: rank {process} has stopped: {own}")
        assert seconds < 15


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("needs-all-latents", "needs no latents of other ranks, got SVGD"),
        ("no-folder", "out must be a folder that all ranks reach, got None"),
        ("too-few", "num_particles must be at least one for each of"),
        ("other-settings", "all ranks must have the same settings"),
    ],
)
def test_settings_that_processes_cannot_share_are_refused(name, message, shared):
    for path in sorted(shared.glob("errors-*.json")):
        assert message in json.loads(path.read_text("utf-8"))[name][0]


def test_one_process_finishes_what_several_denoised(shared, alone):
    folder = shared / "failures" / "picture"
    assert len(list(folder.glob("[0-9]*.png"))) < 10
    fastrepulse.resume(folder, device="cpu", progress=False)
    assert files_in(folder) == files_in(alone("euler"))


def test_a_process_that_is_killed_is_named_and_the_run_goes_on(tmp_path):
    expected = tmp_path / "expected"
    shared_runs.draw(expected, num_inference_steps=5)
    start = time.monotonic()
    # Without torchrun, which would stop the other processes before they report
    base = ENVIRONMENT | {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    base["MASTER_PORT"] = str(20_000 + os.getpid() % 10_000)
    command = [sys.executable, str(JOB), str(tmp_path), "killed"]
    processes = [subprocess.Popen(command, env=base | {"RANK": str(rank)}) for rank in range(3)]
    codes = [process.wait(120) for process in processes]
    assert codes[1] == -signal.SIGKILL
    assert time.monotonic() - start < 60
    for rank in (0, 2):
        assert "rank 1 does not answer" in (tmp_path / f"message-{rank}").read_text("utf-8")
    assert list((tmp_path / "killed").glob(CHECKPOINTS))
    # On another number of processes
    done = torchrun(2, str(JOB), str(tmp_path), "resume")
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "killed") == files_in(expected)


def test_torchrun_starts_the_command_line(tmp_path):
    command = ["-m", "fastrepulse", "sample", "a planet", "-n", "3", "--num-inference-steps", "1"]
    done = torchrun(2, *command, "--out", "drawn", "--seed", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("repelled in") == 1 and done.stderr.count("denoise:   0%") == 1
    alone = fastrepulse.sample("a planet", 3, num_inference_steps=1, seed=1, progress=False)
    assert len(alone.images) == len(list((tmp_path / "drawn").glob("[0-9]*.png"))) == 3


def test_a_group_must_be_a_process_group():
    with pytest.raises(TypeError, match="process group, got 2"):
        Ranks(2)


@pytest.mark.slow
def test_checkpoints_of_processes_hold_all_particles(tmp_path):
    done = torchrun(2, str(JOB), str(tmp_path), "killed")
    assert done.returncode != 0
    assert "exitcode  : -9" in done.stderr and "rank      : 1" in done.stderr
    newest = sorted((tmp_path / "killed").glob(CHECKPOINTS))[-1]
    assert load_file(newest)["x"].shape == (10, 4, 8, 8)
