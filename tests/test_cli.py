import io
import json
import re
import subprocess
import sys
import time

import pytest

import fastrepulse
from fastrepulse import cli, models
from helpers import single_files

COMMAND = [sys.executable, "-m", "fastrepulse"]
FEW = ("sample", "a planet", "--height", "32", "--width", "32", "--num-inference-steps", "1")


def run(*arguments, cwd):
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def here(monkeypatch, tmp_path, capfd):
    """Runs a command in this process; returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["fastrepulse", *arguments])
            cli.main()
        output, errors = capfd.readouterr()
        return ended.value.code, output, errors

    return run_here


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
    assert settings["repulsion"]["window"] == {"high": 9.0, "low": 1.0}


def test_sample_without_repulsion(tmp_path, here):
    code, _, errors = here(*FEW, "-n", "1", "--embedding", "none")
    assert code == 0, errors
    settings = json.loads((tmp_path / "out" / "sample.json").read_text())["settings"]
    assert settings["repulsion"] is None


def test_a_checkpoint_is_drawn_from(tmp_path, here):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(models.DEFAULT_MODEL)
    single_files.write(tmp_path / "x.safetensors", single_files.checkpoint_weights(pipe, "sd2"))
    few = (*FEW, "-n", "2", "--seed", "0")
    config = ("--model", "x.safetensors", "--config", str(models.DEFAULT_MODEL))
    code, _, errors = here(*few, *config, "--out", "refused")
    assert code == 2 and "--prediction-type" in errors
    code, _, errors = here(*few, *config, "--prediction-type", "v_prediction", "--out", "one")
    assert code == 0, errors
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


def test_a_run_that_was_killed_goes_on(tmp_path, here):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(models.DEFAULT_MODEL)
    single_files.write(tmp_path / "x.safetensors", single_files.checkpoint_weights(pipe, "sd2"))
    config = ("--config", str(models.DEFAULT_MODEL))
    few = ("sample", "a planet", "-n", "8", "--num-inference-steps", "9", "--seed", "0")
    few += ("--model", "x.safetensors", *config, "--prediction-type", "v_prediction")
    kill_after_a_step(*few, "--bank", "b", "--out", "killed", cwd=tmp_path, out=tmp_path / "killed")
    code, _, errors = here(*few, "--out", "killed")
    assert code == 2 and "fastrepulse resume killed" in errors
    code, output, errors = here("resume", "killed", "--bank", "b", *config)
    assert code == 0, errors
    assert "8 images" in output
    assert len(fastrepulse.Bank.load(tmp_path / "b")) == 8
    code, _, errors = here("resume", "killed")
    assert code == 2 and "no checkpoint" in errors


def test_a_bank_grows_from_run_to_run_and_pictures_are_avoided(tmp_path, here):
    few = (*FEW[:-1], "5", "-n", "2", "--seed", "0")
    held = []
    for _ in range(2):
        code, _, errors = here(*few, "--bank", "bank.safetensors")
        assert code == 0, errors
        held.append(len(fastrepulse.Bank.load(tmp_path / "bank.safetensors")))
    assert held == [2, 4]
    for more in (("alone",), ("unlike", "--unlike", "alone")):
        code, _, errors = here(*few, "--out", *more)
        assert code == 0, errors
    code, _, errors = here(*few, "--out", "both", "--unlike", "alone", "--like", "unlike")
    assert code == 0, errors
    paths = (tmp_path / folder / "00000.png" for folder in ("alone", "unlike", "both"))
    assert len({path.read_bytes() for path in paths}) == 3


def test_the_page_says_in_one_line_what_it_needs(here, monkeypatch):
    monkeypatch.setattr(cli.exploring, "find_spec", lambda name: None)
    code, _, errors = here("ui")
    assert code == 2 and errors.count("\n") == 1 and "pip install 'fastrepulse[ui]'" in errors


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--bank", "b", "--unlike", "c"), "bank must be without unlike"),
        (("--bank", "b", "--embedding", "none"), "with an embedding"),
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
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, named, tmp_path, here):
    code, _, errors = here("sample", "a planet", *arguments)
    assert code == 2
    assert errors.startswith("error:") and named in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_reported_before_the_first_step(tmp_path, here):
    (tmp_path / "out").write_text("a file")
    code, _, errors = here("sample", "a planet", "-n", "1", "--out", "out")
    assert code == 2 and "out" in errors
    assert "denoise" not in errors


def test_each_run_has_a_folder_of_its_own(tmp_path, here):
    for folder in ("out", "out-2"):
        code, output, errors = here(*FEW, "-n", "1")
        assert code == 0 and folder in output, errors
        assert (tmp_path / folder / "00000.png").exists()
    code, _, errors = here(*FEW, "-n", "1", "--out", "out")
    assert code == 2 and "images of another run" in errors


def test_info_names_versions_and_embeddings(here):
    code, output, _ = here("info")
    assert code == 0
    for word in ("fastrepulse", "torch", "thirds", "euler", "cpu: yes"):
        assert word in output


LONG = "a-folder-with-a-name-of-many-words/" * 3 + "images-été"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_command_prints_whole_lines_in_any_terminal(encoding, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = LONG if encoding != "ascii" else LONG.replace("é", "?")

    def run_in_terminal(line):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["fastrepulse", *line.split()])
            patch.setenv("COLUMNS", "20")
            for name, stream in zip(("stdout", "stderr"), streams, strict=True):
                patch.setattr(sys, name, stream)
            cli.main()
        for stream in streams:
            stream.flush()
        output, errors = (stream.buffer.getvalue().decode(encoding) for stream in streams)
        assert "…" not in output + errors
        return ended.value.code, output, errors

    few = "-n 1 --height 32 --width 32 --num-inference-steps 1"
    code, output, errors = run_in_terminal(f"sample dé→jà --out {LONG} {few}")
    assert code == 0 and f"The images: {shown}\n" in output, errors
    code, _, errors = run_in_terminal(f"sample dé→jà --out {LONG} {few}")
    assert code == 2 and f"got '{shown}'" in errors
    code, output, errors = run_in_terminal(f"demo -n 1 --out {LONG}/demo")
    assert code == 0 and f"side by side: {shown}/demo" in output, errors
    row = r"images of the subject\W+100%\W+100%\W+=\W"
    assert re.search(row, output) and re.search(r"off data .*\d\.\d\d\W+\d\.\d\d\W+\w+", output)
    code, _, errors = run_in_terminal("resume manqué→")
    assert code == 2 and f"'manqu{'?' if encoding == 'ascii' else 'é'}" in errors
    for line, word in (("info", "random_cnn"), ("--help", "evaluate"), ("sample --help", "--out")):
        code, output, errors = run_in_terminal(line)
        assert code == 0 and word in output, errors
