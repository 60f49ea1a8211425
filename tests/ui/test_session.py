"""What the page does, without a page."""

import math
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
from fastrepulse.ui.previews import Previews, coloured
from fastrepulse.ui.session import MOST_PICKED, Session

QUICK = {"prompt": "a robot", "num_particles": 3, "num_inference_steps": 3, "seed": 4}


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture
def session(model, tmp_path):
    return Session(model, None, tmp_path, ThreadPoolExecutor(1))


def drawn(session, **batch):
    session.start(Batch(**{**QUICK, **batch}))
    session.wait(120)
    assert session.error is None
    return session.drawn[-1]


def pixels(images):
    return [np.asarray(image.convert("RGB")) for image in images]


@pytest.mark.parametrize("word", DIFFERS)
def test_words_are_embeddings_at_a_strength_of_their_own(model, word):
    repulsion = Batch("a robot", differ=word, strength=0.5).repulsion(model)
    assert repulsion.strength == 0.5 * embeddings.build(repulsion.embedding).strength
    assert repulsion.bank is None


def test_a_batch_that_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"differ must be one of everything, .* got 'size'"):
        Batch("a robot", differ="size")
    with pytest.raises(ValueError, match=r"strength must be above 0 .* got 0"):
        Batch("a robot", strength=0.0, unlike=tmp_path)


@pytest.mark.parametrize("way", ["command", "program"])
def test_what_is_copied_draws_the_same_pictures(session, model, way, tmp_path):
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
    else:
        line = [sys.executable, "-c", batch.batch.as_python(None)]
    subprocess.run(line, cwd=tmp_path, check=True, capture_output=True)
    for i, image in enumerate(batch.images["repelled"]):
        again = Image.open(tmp_path / "pictures" / f"{i:05d}.png")
        assert np.array_equal(np.asarray(again), np.asarray(image))


def test_both_kinds_come_from_the_same_noise(session):
    without = drawn(session, compare=True, strength=0.0)
    assert all(map(np.array_equal, *(pixels(without.images[kind]) for kind in without.images)))
    both = drawn(session, compare=True, num_inference_steps=6)
    different, same = (pixels(both.images[kind]) for kind in ("repelled", "independent"))
    assert not any(map(np.array_equal, different, same))
    assert "different of 3" in both.measured["independent"]


def test_stop_keeps_what_is_there(session):
    session.start(Batch(**{**QUICK, "num_inference_steps": 200}))
    while session.view.share == 0 or not session.view.images:
        time.sleep(0.01)
    session.stop()
    session.wait(20)
    assert not session.runs and session.drawn[0].stopped
    assert len(session.drawn[0].images["repelled"]) == 3
    assert len(list((session.folder / "batch-001" / "repelled-stopped").iterdir())) == 3
    assert not drawn(session).stopped


def test_a_run_that_fails_says_why_and_the_next_one_goes_on(session):
    session.start(Batch(**{**QUICK, "num_inference_steps": 5000}))
    session.wait(60)
    assert "num_inference_steps must be below 1000" in str(session.error)
    assert not session.drawn
    assert drawn(session).images["repelled"]
    assert session.error is None


def test_one_batch_at_a_time_and_sessions_take_turns(model, tmp_path):
    worker = ThreadPoolExecutor(1)
    first, second = (Session(model, None, tmp_path, worker) for _ in range(2))
    first.start(Batch(**QUICK))
    with pytest.raises(RuntimeError, match="already"):
        first.start(Batch(**QUICK))
    second.start(Batch(**{**QUICK, "prompt": "a planet"}))
    for session in (first, second):
        session.wait(120)
        assert len(session.drawn) == 1
    assert first.folder != second.folder
    assert second.drawn[0].batch.prompt == "a planet"


def test_pictures_from_the_disk_are_cut_or_refused_by_name(session, tmp_path):
    Image.new("RGB", (300, 100), "red").save(tmp_path / "wide.jpg")
    session.pick_file("like", tmp_path / "wide.jpg")
    assert session.picked["like"][0].size == (64, 64)
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"bad\.png cannot be read"):
        session.pick_file("like", tmp_path / "bad.png")
    session.picked["like"] *= MOST_PICKED
    with pytest.raises(ValueError, match=f"like must be at most {MOST_PICKED} pictures"):
        session.pick("like", Image.new("RGB", (64, 64)))


def test_alike_pictures_lie_close_together_and_a_blend_where_it_was_asked():
    generator = torch.Generator().manual_seed(0)
    # Two heaps of pictures of a few colours, mixed linearly so that nothing is cut off
    shades = torch.rand(8, 3, generator=generator) * 40 + 90
    shades[4:] += torch.tensor([60.0, 0.0, 0.0])
    images = [Image.fromarray(np.full((8, 8, 3), shade.round().byte().numpy())) for shade in shades]
    embed = torch.stack([torch.from_numpy(image)[0, 0].double() for image in pixels(images)])
    pca_map = PcaMap.of(embed, images)
    assert (pca_map.places >= 0).all() and (pca_map.places <= torch.tensor(SIZE)).all()
    apart = torch.cdist(pca_map.places, pca_map.places)
    assert apart[:4, :4].max() < apart[:4, 4:].min()
    wanted = pca_map.places[:4].mean(dim=0) + torch.tensor([15.0, -10.0])
    blend = pca_map.blend(*wanted.tolist())
    rows = torch.cat([embed, torch.from_numpy(pixels([blend])[0])[:1, 0].double()])
    together = PcaMap.of(rows[:8], images)
    # Where the blend's own embedding falls on the same axes
    centred = rows - embed.mean(dim=0)
    axes = torch.linalg.lstsq(centred[:8], together.places - together.places.mean(dim=0)).solution
    place = centred[8] @ axes + together.places.mean(dim=0)
    assert (place - wanted).norm() < 8  # pixels, for colours in whole numbers
    assert pca_map.sheet(3).size == SIZE


@pytest.mark.parametrize("count", [1, 2])
def test_a_map_of_few_pictures(count):
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")][:count]
    pca_map = PcaMap.of(torch.eye(2)[:count], images)
    assert pca_map.places.isfinite().all()
    assert pca_map.blend(3.0, 4.0).size == (8, 8)


def test_previews_show_colours_and_hold_back(model):
    previews = Previews(model)
    picture = torch.tensor([0.7, 0.5, 0.3]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    latents = model.encode(picture).detach()
    shown = coloured(latents, previews._rgb)
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
