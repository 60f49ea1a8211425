"""Arguments of `sample` are refused by name before any work, or kept in the settings."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

import fastrepulse
from fastrepulse import Correction, Repulsion
from fastrepulse.methods import ParticleGuidance
from fastrepulse.methods.base import Method
from helpers.drawn import draw


def test_images_are_written_to_the_folder(tmp_path):
    settings = {"num_particles": 3, "num_inference_steps": 2}
    saved, held = draw(out=tmp_path / "a" / "b", **settings), draw(**settings)
    assert len(saved.images) == 3 and len(saved.images[1:]) == 2
    for one, other in zip(saved.images, held.images, strict=True):
        assert one.tobytes() == other.tobytes()
    assert {f.name for f in (tmp_path / "a" / "b").iterdir()} == {
        *(f"0000{i}.png" for i in range(3)),
        "grid.png",
        "sample.json",
    }


def test_a_full_disk_is_reported_before_the_first_step(tmp_path, monkeypatch, capsys):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match="room for 0 MB"):
        draw(out=tmp_path / "out", progress=True)
    assert "denoise" not in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_settings_hold_plain_numbers_whatever_was_given(tmp_path):
    method = ParticleGuidance(np.float32(30), window=(torch.tensor(9.0).item(), np.float64(1)))
    result = draw(repulsion=method, guidance_scale=np.float32(5), out=tmp_path / "out")
    assert result.settings["repulsion"]["strength"] == 30
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["settings"] == result.settings


def test_numpy_integers_and_a_negative_prompt_of_none_are_plain_ones(tmp_path):
    plain = {"num_particles": 2, "num_inference_steps": 2, "seed": 2**62, "micro_batch_size": 2}
    repulsion = Repulsion("halves", subset=2)
    expected = draw(**plain, repulsion=repulsion)
    sizes = {"height": np.int32(32), "width": np.uint8(32)}
    result = draw(
        **{name: np.int64(value) for name, value in plain.items()},
        **sizes,
        repulsion=Repulsion("halves", subset=np.int64(2)),
        corrections=[],
        negative_prompt=None,
        out=tmp_path / "out",
    )
    assert torch.equal(result.latents, expected.latents)
    assert json.dumps(result.settings) == json.dumps(expected.settings)
    for wrong in (np.bool_(True), np.float64(2), True, 2.0):
        with pytest.raises(TypeError, match="num_particles must be an int"):
            draw(num_particles=wrong)


def test_settings_that_json_cannot_hold_are_named_before_the_first_step(tmp_path):
    class Mine(Method):
        def push(self, particles):
            raise AssertionError("a step was taken")

        def settings(self):
            return {"set": {1, 2}}

    with pytest.raises(TypeError, match=r"settings must be what JSON can hold, got \{1, 2\}"):
        draw(repulsion=Mine(), out=tmp_path / "out")
    with pytest.raises(
        TypeError, match=r"window must be 'auto' or two noise levels .* got \(None, 1.5\)"
    ):
        Repulsion(window=(None, 1.5))


def test_images_of_another_run_are_not_overwritten(tmp_path):
    first = draw(num_particles=2, num_inference_steps=1, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="out must be a new folder"):
        draw(num_particles=1, num_inference_steps=1, seed=1, out=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(first.images) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"num_particles": 0}, ValueError, "num_particles must be at least 1, got 0"),
        ({"num_particles": 2.5}, TypeError, "num_particles must be an int, got 2.5"),
        ({"num_inference_steps": -3}, ValueError, "num_inference_steps .* got -3"),
        ({"micro_batch_size": 0}, ValueError, "micro_batch_size .* got 0"),
        ({"prompt": []}, ValueError, "prompt .* empty list"),
        ({"prompt": ["a", 3]}, TypeError, "prompt .* got .'a', 3"),
        ({"guidance_scale": math.nan}, ValueError, "guidance_scale .* nan"),
        ({"guidance_scale": "5"}, TypeError, "guidance_scale must be a number, got '5'"),
        ({"latents": [1.0]}, TypeError, "latents must be a tensor"),
        ({"generator": 1}, TypeError, "generator must be a torch.Generator or None, got 1"),
        ({"scheduler": "heun"}, ValueError, "scheduler must be one of euler, .* 'heun'"),
        ({"repulsion": "colour"}, ValueError, "repulsion, .*, must be one of .* 'colour'"),
        ({"repulsion": 3}, TypeError, "repulsion must be .* 3"),
        ({"seed": -1}, ValueError, "seed .* -1"),
        ({"seed": "x"}, TypeError, "seed .* 'x'"),
        ({"num_inference_steps": 1001}, ValueError, "num_inference_steps must be below 1000"),
        ({"prompt": None}, TypeError, "prompt .* got None"),
        (
            {"negative_prompt": 3},
            TypeError,
            "negative_prompt must be a string or a list of strings, got 3",
        ),
        ({"height": "64"}, TypeError, "height must be an int or None, got '64'"),
        ({"height": 30}, ValueError, "height must be a positive multiple of 4, got 30"),
        ({"latents": torch.zeros(2, 4, 16, 16)}, ValueError, r"latents must be \[6, 4, 16, 16\]"),
        ({"compile": "maybe"}, ValueError, "compile must be 'auto', True or False, got 'maybe'"),
        ({"attention": "flash"}, ValueError, "attention must be one of auto, .* got 'flash'"),
        ({"attention": "xformers"}, ValueError, "attention must be available, got 'xformers'"),
        ({"out": "/dev/null/x"}, NotADirectoryError, "out must be a folder"),
        ({"corrections": Correction()}, TypeError, "corrections must be a sequence"),
        ({"dtype": "float16"}, TypeError, "dtype must be a torch.dtype or None, got 'float16'"),
        ({"model": "no-such-folder"}, FileNotFoundError, "no-such-folder"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    arguments = {"prompt": "a potted plant", "num_particles": 6, **arguments}
    with pytest.raises(error, match=named):
        fastrepulse.sample(**arguments, progress=False)
