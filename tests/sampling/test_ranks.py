"""Several processes share a run: they write the files of one process, and end together."""

import json

import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse.sampling.distributed import Ranks
from helpers import shared_runs
from helpers.torchrun import JOB, files_in, torchrun


@pytest.fixture(
    scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)], ids=["two", "three"]
)
def shared(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared")
    shared_runs.stopped(out / "stopped")
    assert not list((out / "stopped").glob("*.png"))
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


def test_several_processes_finish_a_run_of_one_process(shared, tmp_path):
    shared_runs.draw(tmp_path, num_inference_steps=shared_runs.STEPS)
    assert files_in(shared / "stopped") == files_in(tmp_path)


def test_one_process_finishes_what_several_denoised(shared, alone):
    folder = shared / "failures" / "picture"
    assert len(list(folder.glob("[0-9]*.png"))) < 6
    fastrepulse.resume(folder, device="cpu", progress=False)
    assert files_in(folder) == files_in(alone("euler"))


def test_a_group_must_be_a_process_group():
    with pytest.raises(TypeError, match="process group, got 2"):
        Ranks(2)
