import json
import subprocess
import sys
import time

import pytest
import single_files

import fastrepulse
from fastrepulse import models

COMMAND = [sys.executable, "-m", "fastrepulse"]


def run(*arguments, cwd):
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_sample_writes_pictures_and_says_where(tmp_path):
    done = run(
        *("sample", "a planet", "-n", "2", "--out", "shown", "--seed", "3"),
        *("--num-inference-steps", "3", "--embedding", "thirds", "--window", "9", "1"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "shown" in done.stdout and "denoise" in done.stderr
    assert (tmp_path / "shown" / "00001.png").exists()
    settings = json.loads((tmp_path / "shown" / "sample.json").read_text())["settings"]
    assert settings["repulsion"]["embedding"] == "thirds"
    assert settings["repulsion"]["window"] == [9.0, 1.0]


def test_sample_without_repulsion(tmp_path):
    done = run(
        *("sample", "a planet", "-n", "1", "--num-inference-steps", "1", "--embedding", "none"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (
        json.loads((tmp_path / "out" / "sample.json").read_text())["settings"]["repulsion"] is None
    )


def test_a_checkpoint_is_drawn_from(tmp_path):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(models.DEFAULT_MODEL)
    single_files.write(tmp_path / "x.safetensors", single_files.checkpoint_weights(pipe, "sd2"))
    few = ("sample", "a planet", "-n", "2", "--num-inference-steps", "2", "--seed", "0")
    config = ("--model", "x.safetensors", "--config", str(models.DEFAULT_MODEL))
    refused = run(*few, *config, "--out", "refused", cwd=tmp_path)
    assert refused.returncode == 2 and "--prediction-type" in refused.stderr
    done = run(*few, *config, "--prediction-type", "v_prediction", "--out", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "one" / "sample.json").read_text())["settings"]
    assert settings["model"].endswith("x.safetensors")
    assert settings["prediction_type"] == "v_prediction"


def kill_after_a_step(*arguments, cwd, out):
    """Starts a run with a checkpoint after every step, and kills it when there is one."""
    process = subprocess.Popen([*COMMAND, *arguments, "--checkpoint-every", "0"], cwd=cwd)
    stop = time.monotonic() + 120
    while not list(out.glob("checkpoint-*.safetensors")):
        assert process.poll() is None and time.monotonic() < stop
        time.sleep(0.01)
    process.kill()
    process.wait()


def test_a_run_that_was_killed_goes_on(tmp_path):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(models.DEFAULT_MODEL)
    single_files.write(tmp_path / "x.safetensors", single_files.checkpoint_weights(pipe, "sd2"))
    config = ("--config", str(models.DEFAULT_MODEL))
    few = ("sample", "a planet", "-n", "8", "--num-inference-steps", "20", "--seed", "0")
    few += ("--model", "x.safetensors", *config, "--prediction-type", "v_prediction")
    kill_after_a_step(*few, "--bank", "b", "--out", "killed", cwd=tmp_path, out=tmp_path / "killed")
    refused = run(*few, "--out", "killed", cwd=tmp_path)
    assert refused.returncode == 2 and "fastrepulse resume killed" in refused.stderr
    done = run("resume", "killed", "--bank", "b", *config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 pictures" in done.stdout
    assert len(fastrepulse.Bank.load(tmp_path / "b")) == 8
    again = run("resume", "killed", cwd=tmp_path)
    assert again.returncode == 2 and "no checkpoint" in again.stderr


def test_a_bank_grows_from_run_to_run_and_pictures_are_avoided(tmp_path):
    few = ("sample", "a planet", "-n", "2", "--num-inference-steps", "5", "--seed", "0")
    held = []
    for _ in range(2):
        done = run(*few, "--bank", "bank.safetensors", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        held.append(len(fastrepulse.Bank.load(tmp_path / "bank.safetensors")))
    assert held == [2, 4]
    alone = run(*few, "--out", "alone", cwd=tmp_path)
    done = run(*few, "--out", "unlike", "--unlike", "alone", cwd=tmp_path)
    assert alone.returncode == done.returncode == 0, done.stderr
    first, second = (tmp_path / folder / "00000.png" for folder in ("alone", "unlike"))
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--bank", "b", "--unlike", "c"), "bank and unlike"),
        (("--bank", "b", "--embedding", "none"), "bank and unlike"),
        (("--unlike", "/no/such/folder"), "/no/such/folder"),
        (("-n", "0"), "num_particles"),
        (("--embedding", "colour"), "'colour'"),
        (("--strength", "nan"), "nan"),
        (("--window", "1", "2"), "window"),
        (("--model", "/no/such/folder"), "/no/such/folder"),
        (("--model", "[/x]"), "[/x]"),
        (("--device", "warp"), "'warp'"),
        (("-n", "many"), "--num-particles"),
        (("--on", "both"), "--on"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, named, tmp_path):
    done = run("sample", "a planet", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error:") and named in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_reported_before_the_first_step(tmp_path):
    (tmp_path / "out").write_text("a file")
    done = run("sample", "a planet", "-n", "1", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2 and "out" in done.stderr
    assert "denoise" not in done.stderr


def test_each_run_has_a_folder_of_its_own(tmp_path):
    few = ("sample", "a planet", "-n", "1", "--num-inference-steps", "1")
    for folder in ("out", "out-2"):
        done = run(*few, cwd=tmp_path)
        assert done.returncode == 0 and folder in done.stdout, done.stderr
        assert (tmp_path / folder / "00000.png").exists()
    done = run(*few, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2 and "pictures of another run" in done.stderr


def test_info_names_versions_and_embeddings(tmp_path):
    done = run("info", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("fastrepulse", "torch", "thirds", "euler", "cpu: yes"):
        assert word in done.stdout
