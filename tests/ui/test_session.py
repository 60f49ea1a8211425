"""Sessions, batches, the map and previews, without the page."""

import math
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from fastrepulse import embeddings, load_model
from fastrepulse.ui.batch import DIFFERS, Batch
from fastrepulse.ui.pca_map import SIZE, PcaMap
from fastrepulse.ui.previews import Previews, latents_to_rgb
from fastrepulse.ui.session import MAX_PICKED, Session

QUICK = {"prompt": "a robot", "num_particles": 3, "num_inference_steps": 3, "seed": 4}


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture
def session(model, tmp_path):
    return Session(model, tmp_path, ThreadPoolExecutor(1))


def drawn(session, **batch):
    session.start(Batch(**{**QUICK, **batch}))
    session.wait(120)
    assert session.error is None
    return session.drawn[-1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_folder_has_the_mode_of_the_umask(model, tmp_path):
    (tmp_path / "plain").mkdir()
    folder = Session(model, tmp_path / "new", ThreadPoolExecutor(1)).folder
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def pixels(images):
    return [np.asarray(image.convert("RGB")) for image in images]


@pytest.mark.parametrize("word", DIFFERS)
def test_each_choice_uses_its_embedding_at_the_embedding_s_strength(model, word):
    repulsion = Batch("a robot", differ=word, strength=0.5).repulsion(model)
    assert repulsion.strength == 0.5 * embeddings.build(repulsion.embedding).strength
    assert repulsion.bank is None


def test_a_batch_refuses_invalid_settings(tmp_path):
    with pytest.raises(ValueError, match=r"differ must be one of everything, .* got 'size'"):
        Batch("a robot", differ="size")
    with pytest.raises(ValueError, match=r"strength must be above 0 .* got 0"):
        Batch("a robot", strength=0.0, unlike=tmp_path)


@pytest.mark.parametrize("way", ["command", "program"])
def test_the_shown_command_and_program_draw_the_same_images(session, way, monkeypatch, tmp_path):
    for image in drawn(session, compare=True).images["independent"][:2]:
        session.pick("unlike", image)
    session.pick("like", session.drawn[0].images["repelled"][2])
    batch = drawn(session, negative_prompt="blurry, 'dark'", differ="style", strength=0.7)
    assert len(list(batch.batch.unlike.iterdir())) == 2
    assert len(list(batch.batch.like.iterdir())) == 1
    if way == "command":
        words = shlex.split(batch.batch.as_command(None))
        assert words[0] == "fastrepulse"
        line = [sys.executable, "-m", *words, "--out", "pictures"]
        subprocess.run(line, cwd=tmp_path, check=True, capture_output=True)
    else:
        monkeypatch.chdir(tmp_path)
        exec(batch.batch.as_python(None), {})
    for i, image in enumerate(batch.images["repelled"]):
        again = Image.open(tmp_path / "pictures" / f"{i:05d}.png")
        assert np.array_equal(np.asarray(again), np.asarray(image))


def test_repelled_and_independent_images_start_from_the_same_noise(session):
    without = drawn(session, compare=True, strength=0.0)
    assert all(map(np.array_equal, *(pixels(without.images[kind]) for kind in without.images)))
    both = drawn(session, compare=True, num_inference_steps=6)
    different, same = (pixels(both.images[kind]) for kind in ("repelled", "independent"))
    assert not any(map(np.array_equal, different, same))
    assert "different of 3" in both.measured["independent"]


def test_stop_keeps_the_predicted_images(session):
    session.start(Batch(**{**QUICK, "num_inference_steps": 200}))
    while session.view.share == 0 or not session.view.images:
        time.sleep(0.01)
    session.stop()
    session.wait(20)
    assert not session.runs and session.drawn[0].stopped
    assert len(session.drawn[0].images["repelled"]) == 3
    assert len(list((session.folder / "batch-001" / "repelled-stopped").iterdir())) == 3
    assert not drawn(session).stopped


def test_a_failed_run_reports_its_error_and_the_next_run_works(session):
    session.start(Batch(**{**QUICK, "num_inference_steps": 5000}))
    session.wait(60)
    assert "num_inference_steps must be below 1000" in str(session.error)
    assert not session.drawn
    assert drawn(session).images["repelled"]
    assert session.error is None


def test_a_session_draws_one_batch_at_a_time_and_sessions_take_turns(model, tmp_path):
    worker = ThreadPoolExecutor(1)
    first, second = (Session(model, tmp_path, worker) for _ in range(2))
    first.start(Batch(**QUICK))
    with pytest.raises(RuntimeError, match="already"):
        first.start(Batch(**QUICK))
    second.start(Batch(**{**QUICK, "prompt": "a planet"}))
    for session in (first, second):
        session.wait(120)
        assert len(session.drawn) == 1
    assert first.folder != second.folder
    assert second.drawn[0].batch.prompt == "a planet"


def test_image_files_are_cropped_or_refused_by_name(session, tmp_path):
    Image.new("RGB", (300, 100), "red").save(tmp_path / "wide.jpg")
    session.pick_file("like", tmp_path / "wide.jpg")
    assert session.picked["like"][0].size == (64, 64)
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"bad\.png cannot be read"):
        session.pick_file("like", tmp_path / "bad.png")
    session.picked["like"] *= MAX_PICKED
    with pytest.raises(ValueError, match=f"like must be at most {MAX_PICKED} images"):
        session.pick("like", Image.new("RGB", (64, 64)))


def test_similar_images_lie_close_together_on_the_map():
    shades = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) * 40 + 90
    shades[4:] += torch.tensor([60.0, 0.0, 0.0])
    images = [Image.fromarray(np.full((8, 8, 3), shade.round().byte().numpy())) for shade in shades]
    pca_map = PcaMap.of(shades, images)
    assert (pca_map.positions >= 0).all() and (pca_map.positions <= torch.tensor(SIZE)).all()
    distances = torch.cdist(pca_map.positions, pca_map.positions)
    assert distances[:4, :4].max() < distances[:4, 4:].min()
    for position, image in zip(pca_map.positions.tolist(), images, strict=True):
        assert pca_map.nearest(*position) is image
    assert pca_map.sheet(3).size == SIZE


@pytest.mark.parametrize("count", [1, 2])
def test_a_map_of_one_or_two_images(count):
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")][:count]
    pca_map = PcaMap.of(torch.eye(2)[:count], images)
    assert pca_map.positions.isfinite().all()
    assert pca_map.nearest(3.0, 4.0).size == (8, 8)


def test_previews_show_colours_and_limit_their_time(model):
    previews = Previews(model)
    picture = torch.tensor([0.7, 0.5, 0.3]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    latents = model.encode(picture).detach()
    shown = latents_to_rgb(latents, previews._rgb)
    assert (shown.mean(dim=(2, 3)) - picture.mean(dim=(2, 3))).abs().max() < 0.15
    assert previews.of(latents)[0].size == (64, 64)
    previews._spent = math.inf
    assert previews.of(latents) is None
    previews.restart()
    assert previews.of(latents) is not None


def test_previews_of_another_model_learn_its_colours(model):
    from dataclasses import replace

    previews = Previews(replace(model, name="another"))
    assert previews._rgb is None and previews.of(torch.zeros(1, 4, 16, 16))[0].size == (64, 64)
    latents = torch.randn(20, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    rgb = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) / 10
    colours = torch.einsum("oc,nchw->nohw", rgb[:, :4], latents) + rgb[:, 4, None, None]
    previews.learn(latents, colours.repeat_interleave(4, 2).repeat_interleave(4, 3))
    torch.testing.assert_close(previews._rgb, rgb, rtol=1e-3, atol=1e-4)
