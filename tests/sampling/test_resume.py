"""A stopped run resumes from its last checkpoint and writes the same images."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse import Bank, Correction, Repulsion, methods, models
from fastrepulse.checks import plain
from fastrepulse.methods.from_settings import method_from_settings
from fastrepulse.safetensors_record import load_record, save_record
from fastrepulse.sampling.checkpoint import Checkpoints
from fastrepulse.sampling.loop import DenoiseLoop
from fastrepulse.sampling.output import CHECKPOINTS, save_picture
from helpers.faults import failing

PROMPTS = ["a face", "a robot"]
STEPS = 5


class Stopped(BaseException):
    pass


def draw(folder=None, n=3, **arguments):
    how = {"num_inference_steps": STEPS, "seed": 3, "progress": False, "micro_batch_size": 4}
    how |= {"height": 32, "width": 32, "checkpoint_every": 0}
    return fastrepulse.sample(PROMPTS, n, out=folder, **{**how, **arguments})


def stop_after(monkeypatch, steps, folder, **arguments):
    """Draws and stops right after writing the checkpoint of a number of steps."""
    real = Checkpoints._write

    def write(self, loop, folder):
        real(self, loop, folder)
        if loop.steps()[0] == steps:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Checkpoints, "_write", write)
        draw(folder, **arguments)


def draw_with_copies(monkeypatch, folder, **arguments):
    """Draws a whole run and returns copies of its folder by the number of steps taken.

    A copy is what a run leaves if it is stopped right after a checkpoint.
    """
    real, copies = Checkpoints._write, {}

    def write(self, loop, given):
        real(self, loop, given)
        steps = loop.steps()[0]
        # The last one is written twice: after the step and before decoding
        if steps not in copies:
            copies[steps] = shutil.copytree(given, folder.with_name(f"after-{steps}"))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_write", write)
        draw(folder, **arguments)
    return copies


def images_in(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def own_embedding(latents):
    return latents.mean(dim=(2, 3))


RUNS = {
    "default": {},
    "ddim": {"scheduler": "ddim"},
    "multistep": {"scheduler": "dpm++"},
    "corrector": {"scheduler": "unipc"},
    "multistep-restart": {
        "scheduler": "dpm++",
        "repulsion": Repulsion("pooled", window=(math.inf, 5.0), restart=(5.0, 1.0)),
    },
    "independent": {"repulsion": methods.IntervalGuidance((5.0, 0.5))},
    "corrections": {"corrections": [Correction(steps=2, step_size=0.1), Correction("random")]},
    "subset": {"repulsion": Repulsion("halves", subset=2, window=(math.inf, 0.0))},
    "text": {"repulsion": methods.CADS()},
    "one": {"n": 1, "negative_prompt": ["blue", "red"], "long_prompts": "chunks"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_writes_the_files_of_a_whole_run(name, monkeypatch, tmp_path):
    copies = draw_with_copies(monkeypatch, tmp_path / "whole", **RUNS[name])
    expected = images_in(tmp_path / "whole")
    for steps in (1, 3, STEPS):
        result = fastrepulse.resume(copies[steps], progress=False)
        assert images_in(copies[steps]) == expected
        assert len(result.images) == len(result.latents) == len(expected) - 2


def test_a_run_can_be_resumed_before_and_after_its_restart(monkeypatch, tmp_path):
    copies = draw_with_copies(monkeypatch, tmp_path / "whole")
    expected = images_in(tmp_path / "whole")
    assert max(copies) > STEPS
    for steps in range(STEPS - 2, max(copies) + 1):
        folder = tmp_path / str(steps)
        stop_after(monkeypatch, steps, folder)
        # The copies that other tests resume are what a stopped run leaves
        for one, other in zip(*(sorted(f.iterdir()) for f in (folder, copies[steps])), strict=True):
            (tensors, record), (copied, copied_record) = load_record(one), load_record(other)
            assert one.name == other.name and record == copied_record
            assert all(torch.equal(tensors[key], copied[key]) for key in tensors | copied)
        fastrepulse.resume(folder, progress=False)
        assert images_in(folder) == expected


@pytest.mark.parametrize("given", [True, False])
def test_a_resumed_run_continues_its_bank(given, monkeypatch, tmp_path):
    def bank():
        known = Bank(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
        draw(seed=1, repulsion=Repulsion("pooled", bank=known))
        return known

    whole, stopped = bank(), bank()
    draw(tmp_path / "whole", repulsion=Repulsion("pooled", bank=whole))
    folder = tmp_path / "stopped"
    stop_after(monkeypatch, 3, folder, repulsion=Repulsion("pooled", bank=stopped))
    earlier = bank()
    fastrepulse.resume(folder, bank=earlier if given else None, progress=False)
    assert images_in(folder) == images_in(tmp_path / "whole")
    if given:
        assert len(earlier) == len(whole) == 6
        levels, others = earlier.state()[0], whole.state()[0]
        assert all(torch.equal(levels[key], others[key]) for key in others)


def test_resume_needs_a_custom_embedding_again(monkeypatch, tmp_path):
    own = Repulsion(own_embedding)
    whole = draw(repulsion=own).latents
    stop_after(monkeypatch, 2, tmp_path, repulsion=own)
    with pytest.raises(ValueError, match="repulsion must be given to resume this run"):
        fastrepulse.resume(tmp_path)
    with pytest.raises(ValueError, match="repulsion was"):
        fastrepulse.resume(tmp_path, repulsion=Repulsion("pooled"))
    assert torch.equal(fastrepulse.resume(tmp_path, repulsion=own, progress=False).latents, whole)


def test_a_run_can_be_resumed_with_another_micro_batch_size(monkeypatch, tmp_path):
    for scheduler in ("euler", "dpm++"):
        whole, folder = draw(scheduler=scheduler), tmp_path / scheduler
        stop_after(monkeypatch, 3, folder, scheduler=scheduler)
        (path,) = sorted(folder.glob(CHECKPOINTS))[-1:]
        tensors, record = load_record(path)
        save_record(path, tensors, record | {"micro_batch_size": 1})
        latents = fastrepulse.resume(folder, progress=False).latents
        torch.testing.assert_close(latents, whole.latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["made_with"].update(fastrepulse="0.0.1"), "was '0.0.1'"),
        (lambda record: record["made_with"].update(weights="0"), "weights was '0', here it is"),
        (lambda record: record["settings"].update(variants={"unet": "fp16"}), "variants was"),
    ],
    ids=["version", "weights", "setting"],
)
def test_a_checkpoint_of_another_version_model_or_setting_is_refused(
    change, message, monkeypatch, tmp_path
):
    stop_after(monkeypatch, 1, tmp_path)
    (path,) = tmp_path.glob(CHECKPOINTS)
    tensors, record = load_record(path)
    change(record)
    save_record(path, tensors, record)
    with pytest.raises(ValueError, match=message):
        fastrepulse.resume(tmp_path)


def test_changed_weights_are_refused(monkeypatch, tmp_path):
    stop_after(monkeypatch, 1, tmp_path)
    with monkeypatch.context() as patch:
        weight = models.load_model().unet.conv_in.weight
        patch.setattr(weight, "data", weight + 0.01)
        with pytest.raises(ValueError, match="weights was"):
            fastrepulse.resume(tmp_path)
    fastrepulse.resume(tmp_path, progress=False)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_the_checkpoint_before_a_damaged_one_is_used(damage, monkeypatch, tmp_path, caplog):
    draw(tmp_path / "whole")
    folder = tmp_path / "stopped"
    stop_after(monkeypatch, 3, folder)
    earlier, newest = sorted(folder.glob(CHECKPOINTS))
    for path in (newest, earlier):
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[-1] ^= 1
        path.write_bytes(content[: {"cut": len(content) // 2, "empty": 0}.get(damage)])
        if path == newest:
            kept = earlier.read_bytes()
            fastrepulse.resume(folder, progress=False)
            assert f"a checkpoint is damaged: file {str(newest)!r}" in caplog.text
            assert images_in(folder) == images_in(tmp_path / "whole")
            earlier.write_bytes(kept)
    with pytest.raises(ValueError, match="has only damaged checkpoints"):
        fastrepulse.resume(folder)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoint of a stopped run"):
        fastrepulse.resume(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        fastrepulse.resume(tmp_path / "missing")


def test_a_stopped_run_is_not_overwritten(monkeypatch, tmp_path):
    stop_after(monkeypatch, 1, tmp_path)
    with pytest.raises(FileExistsError, match=f"`fastrepulse resume {tmp_path}` continues it"):
        draw(tmp_path)


def test_a_bank_that_has_changed_since_is_refused(monkeypatch, tmp_path):
    stop_after(monkeypatch, 1, tmp_path, repulsion=Repulsion("pooled", bank=Bank()))
    later = Bank()
    draw(repulsion=Repulsion("pooled", bank=later))
    with pytest.raises(ValueError, match="had 0 particles, got 3"):
        fastrepulse.resume(tmp_path, bank=later)


def test_a_full_disk_at_a_checkpoint_does_not_stop_the_run(monkeypatch, tmp_path, caplog):
    draw(tmp_path / "whole")
    error = OSError(28, "No space left on device")
    with failing(monkeypatch, os, "fsync", error, 2):
        draw(tmp_path / "full")
    assert "no checkpoint after 2 steps: [Errno 28]" in caplog.text
    assert images_in(tmp_path / "full") == images_in(tmp_path / "whole")


def test_checkpoints_are_written_by_elapsed_time(monkeypatch, tmp_path):
    now, written = [0.0], []
    monkeypatch.setattr("fastrepulse.sampling.checkpoint.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        Checkpoints, "_write", lambda self, loop, _: written.append(loop.steps()[0])
    )
    real = DenoiseLoop._advance

    def advance(self, *given):
        now[0] += 10
        real(self, *given)

    monkeypatch.setattr(DenoiseLoop, "_advance", advance)
    monkeypatch.setattr(Checkpoints, "_written", property(lambda _: 0.0, lambda *_: None), False)
    draw(tmp_path / "a", checkpoint_every=35, repulsion=None)
    assert written == [4, 5, 5]
    written.clear()
    draw(tmp_path / "b", checkpoint_every=None, repulsion=None)
    assert written == []


@pytest.mark.parametrize(("every", "error"), [(-1, ValueError), ("1", TypeError)])
def test_an_invalid_checkpoint_interval_is_refused(every, error):
    with pytest.raises(error, match="checkpoint_every must be"):
        draw(checkpoint_every=every)


@pytest.mark.parametrize(
    "method",
    [
        Repulsion(),
        Repulsion("halves", 0.7, on="noisy", pause=None, window=(math.inf, 0.1)),
        Repulsion(bank=Bank(), bandwidth=2.0, restart=None, subset=7),
        *(getattr(methods, name)() for name in methods.__all__),
        methods.CADS(0.1, start=0.2, rescale=0.5),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_method_can_be_rebuilt_from_its_settings(method):
    settings = plain(method.settings())
    again = method_from_settings(settings)
    assert type(again) is type(method)
    assert plain(again.settings()) == settings


@pytest.mark.parametrize(
    "method",
    [Repulsion(own_embedding), methods.SPELL(protected=torch.zeros(2, 4, 8, 8))],
    ids=["function", "tensor"],
)
def test_settings_with_a_function_or_tensor_do_not_rebuild_a_method(method):
    with pytest.raises(ValueError, match="do not make a method"):
        method_from_settings(plain(method.settings()))


def test_resume_keeps_the_images_of_its_run_alone(monkeypatch, tmp_path):
    stop_after(monkeypatch, STEPS + 1, tmp_path)
    _, record = load_record(next(tmp_path.glob(CHECKPOINTS)))
    red = Image.new("RGB", (32, 32), "red")
    save_picture(red, tmp_path, 1, record["settings"])
    save_picture(red, tmp_path, 2, record["settings"] | {"seed": 4})
    red.save(tmp_path / "00003.png")
    (tmp_path / "00004.png").write_bytes((tmp_path / "00001.png").read_bytes()[:20])
    result = fastrepulse.resume(tmp_path, progress=False)
    assert [image.tobytes() == red.tobytes() for image in result.images].index(True) == 1
    assert sum(image.tobytes() == red.tobytes() for image in result.images) == 1
    assert not list(tmp_path.glob(CHECKPOINTS))


def test_resume_removes_unfinished_files_of_a_killed_process(monkeypatch, tmp_path):
    draw(tmp_path / "whole")
    stop_after(monkeypatch, 2, tmp_path / "killed")
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fastrepulse import safetensors_record\n"
        "def killed(tensors, path, about):\n"
        "    (Path(path).parent / '.tmpx').touch()\n"
        "    os._exit(9)\n"
        "safetensors_record.save_file = killed\n"
        "safetensors_record.save_record(Path(sys.argv[1]), {}, {})"
    )
    path = tmp_path / "killed" / "checkpoint-000003.safetensors"
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == 9
    (left,) = (tmp_path / "killed").glob("*.partial")
    assert (left / ".tmpx").exists()
    fastrepulse.resume(tmp_path / "killed", progress=False)
    assert images_in(tmp_path / "killed") == images_in(tmp_path / "whole")


def test_kills_at_random_moments_lose_nothing(tmp_path):
    report = tmp_path / "kills.json"
    command = [sys.executable, "-m", "bench.sampling.kills", "--kills", "6", "-n", "4"]
    command += ["--steps", "8", "--patience", "1", "--out", str(report)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=300, env=environment)
    happened = json.loads(report.read_text("utf-8"))
    assert happened["kills"] == 6
    assert max(happened["steps done when killed"]) > 0
