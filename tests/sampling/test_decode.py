"""Errors while decoding and saving lose no latents."""

import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fastrepulse
from fastrepulse.models import Model
from fastrepulse.out_of_memory import ran_out
from fastrepulse.sampling import decode as decoding
from fastrepulse.sampling.memory import Budget
from fastrepulse.sampling.output import CHECKPOINTS
from helpers.faults import failing


def draw(out=None, n=5, **arguments):
    how = {"num_inference_steps": 2, "seed": 3, "progress": False, "guidance_scale": 1.0}
    how |= {"height": 32, "width": 32}
    return fastrepulse.sample(["a face", "a robot"], n, out=out, **{**how, **arguments})


def images_in(folder):
    return {file.name: Image.open(file).tobytes() for file in sorted(folder.glob("[0-9]*.png"))}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decode")
    return images_in(draw(folder / "whole").save(folder / "saved"))


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        pytest.param(owner, name, after, id=f"{name}-{after}")
        for owner, name, counts in (
            (Model, "decode", (0, 1, 4)),
            (decoding, "save_picture", (0, 1, 4)),
            (decoding, "save_summary", (0,)),
        )
        for after in counts
    ],
)
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("broken")],
    ids=lambda error: type(error).__name__,
)
def test_nothing_is_lost_when_decoding_stops(
    owner, name, error, after, expected, monkeypatch, tmp_path, caplog
):
    folder = tmp_path / "stopped"
    # Batches of two
    monkeypatch.setattr(Budget, "decode_batch_size", lambda _: 2)
    with (
        failing(monkeypatch, owner, name, error, after),
        pytest.raises(type(error)),
    ):
        draw(folder)
    assert f"`fastrepulse resume {folder}` draws the rest" in caplog.text
    (checkpoint,) = folder.glob(CHECKPOINTS)
    assert load_file(checkpoint)["x"].shape == (10, 4, 8, 8)
    before = {file: file.stat().st_mtime_ns for file in folder.glob("[0-9]*.png")}
    sizes, decode = [], Model.decode

    def noted(self, latents):
        sizes.append(len(latents))
        return decode(self, latents)

    monkeypatch.setattr(Model, "decode", noted)
    result = fastrepulse.resume(folder, progress=False)
    # In the same batches as in a whole run
    assert set(sizes) <= {2} and len(sizes) == math.ceil((10 - len(before)) / 2)
    assert images_in(folder) == expected
    assert not list(folder.glob("checkpoint*")) and not list(folder.glob("*.partial"))
    assert len(result.images) == 10 and (folder / "grid.png").exists()
    # Images that existed are not written again
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    record = json.loads((folder / "sample.json").read_text("utf-8"))
    assert record["settings"] == result.settings
    assert len(record["diagnostics"]) == len(result.diagnostics)


def test_an_interrupt_while_saving_keeps_the_finished_images(tmp_path, monkeypatch, caplog):

    real = decoding.save_picture

    def stop_at_two(image, folder, i, settings):
        if i == 2:
            raise KeyboardInterrupt
        return real(image, folder, i, settings)

    monkeypatch.setattr(decoding, "save_picture", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        fastrepulse.sample("a potted plant", 6, out=tmp_path, num_inference_steps=1, progress=False)
    assert "5 of 6 images written" in caplog.text
    drawn = [f"{i:05d}.png" for i in (0, 1, 3, 4, 5)]
    assert sorted(f.name for f in tmp_path.iterdir()) == [*drawn, "checkpoint-000001.safetensors"]


def test_without_a_folder_the_latents_are_saved_to_a_new_one(expected, monkeypatch, caplog):
    with failing(monkeypatch, Model, "decode", RuntimeError("broken")), pytest.raises(RuntimeError):
        draw()
    folder = caplog.text.split("`fastrepulse resume ")[1].split("`")[0]
    result = fastrepulse.resume(folder, progress=False)
    for image, whole in zip(result.images, expected.values(), strict=True):
        assert image.tobytes() == whole


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError()])
def test_batches_that_do_not_fit_are_halved(error, expected, monkeypatch, caplog):
    real, sizes = Model.decode, []

    def fits_two(self, latents):
        sizes.append(len(latents))
        if len(latents) > 2:
            raise error
        return real(self, latents)

    monkeypatch.setattr(Model, "decode", fits_two)
    result = draw()
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    for image, whole in zip(result.images, expected.values(), strict=True):
        assert image.tobytes() == whole
    assert "now decoding 5 images at once" in caplog.text


def test_an_image_that_does_not_fit_raises_the_original_error(monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory")
    with failing(monkeypatch, Model, "decode", error), pytest.raises(torch.OutOfMemoryError):
        draw()


def test_out_of_memory_errors_are_recognised():
    assert ran_out(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"))
    assert ran_out(torch.OutOfMemoryError()) and ran_out(MemoryError())
    assert not ran_out(RuntimeError("shapes do not match")) and not ran_out(ValueError())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), ValueError("unknown")])
def test_out_of_memory_errors_while_compiling_are_recognised(error):
    def fails(module, inputs):
        raise error

    with pytest.raises(Exception, match=str(error)) as caught:
        torch.compile(torch.sin, backend=fails)(torch.ones(3))
    assert caught.value is not error and ran_out(caught.value) == ran_out(error)


def test_an_image_file_records_its_own_prompts_only(tmp_path):
    draw(tmp_path, 2, negative_prompt=["blue", "red"], guidance_scale=2.0)
    with Image.open(tmp_path / "00003.png") as image:
        own = json.loads(image.text["settings"])
        assert image.text["prompt"] == "a robot" and image.text["particle"] == "1"
    assert own["prompts"] == ["a robot"] and own["negative_prompt"] == "red"


def test_an_image_file_of_a_run_with_many_prompts_stays_small(tmp_path):
    prompts = [f"a planet {i}" for i in range(300)]
    how = {"num_inference_steps": 1, "guidance_scale": 1.0, "progress": False}
    how |= {"height": 32, "width": 32}
    fastrepulse.sample(prompts, 1, repulsion=None, out=tmp_path, **how)
    assert max(file.stat().st_size for file in tmp_path.glob("[0-9]*.png")) < 16_000
