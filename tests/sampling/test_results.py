import json

import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse.sampling import output
from fastrepulse.sampling.output import image_grid, to_pil


def test_a_written_grid_is_limited_in_size(result, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "GRID_PIXELS", 6 * 32 * 32)
    with Image.open(result.save(tmp_path) / "grid.png") as grid:
        assert grid.size == (3 * 32 + 2 * 2, 2 * 32 + 2)
    assert result.grid().size == (3 * 64 + 2 * 2, 2 * 64 + 2)


@pytest.fixture(scope="module")
def result():
    return fastrepulse.sample(
        ["a face", "un café"], 3, num_inference_steps=2, seed=11, progress=False
    )


def test_saved_images_record_their_settings(result, tmp_path):
    folder = result.save(tmp_path / "deep" / "folder")
    assert len(list(folder.glob("0*.png"))) == 6
    with Image.open(folder / "00004.png") as image:
        assert image.text["prompt"] == "un café"
        assert image.text["seed"] == "11" and image.text["particle"] == "1"
        own = result.settings | {"prompts": ["un café"]}
        assert json.loads(image.text["settings"]) == own
        assert image.convert("RGB").tobytes() == result.images[4].tobytes()
    record = json.loads((folder / "sample.json").read_text("utf-8"))
    assert record["settings"]["repulsion"]["embedding"]
    assert len(record["diagnostics"]) == len(result.diagnostics) >= 2


def test_saved_settings_reproduce_the_images(result):
    settings = result.settings
    again = fastrepulse.sample(
        settings["prompts"],
        settings["num_particles"],
        repulsion=fastrepulse.Repulsion(**settings["repulsion"]),
        num_inference_steps=settings["num_inference_steps"],
        guidance_scale=settings["guidance_scale"],
        seed=settings["seed"],
        progress=False,
    )
    assert torch.equal(again.latents, result.latents)


@pytest.mark.parametrize(
    ("count", "columns", "size"), [(1, None, (8, 4)), (5, None, (28, 10)), (5, 5, (48, 4))]
)
def test_grid_size(count, columns, size):
    images = [Image.new("RGB", (8, 4), "black")] * count
    assert image_grid(images, columns).size == size


def test_to_pil_rounds_and_orders_channels():
    image = torch.tensor([1.0, 0.5, 0.0]).reshape(1, 3, 1, 1)
    assert to_pil(image)[0].getpixel((0, 0)) == (255, 128, 0)
