"""The shipped models by name, and the turbo model's four steps."""

import shutil

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion, models
from fastrepulse.default_model.figures import PROMPTS
from fastrepulse.default_model.judge import attribute_vendi, judge
from fastrepulse.default_model.rendered import off_data
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.models.shipped import recommended, shipped_name


@pytest.mark.parametrize("name", models.SHIPPED)
def test_a_name_stands_for_the_folder_of_a_shipped_model(name):
    folder = models.SHIPPED[name]
    assert models.locate_model(name) == models.locate_model(folder) == str(folder)
    assert shipped_name(name) == shipped_name(folder) == name
    model = models.load_model(name)
    assert shipped_name(model) == name and model.vocabulary
    assert recommended(model) == recommended(name)


def test_other_models_have_no_name_and_the_usual_settings(tmp_path, monkeypatch):
    assert shipped_name(None) == "small"
    assert shipped_name("owner/turbo") is None and shipped_name(3) is None
    assert recommended("owner/turbo") == recommended(None) == (25, 5.0)
    # A folder that has the name is reached by its path
    shutil.copytree(models.DEFAULT_MODEL, tmp_path / "turbo")
    monkeypatch.chdir(tmp_path)
    assert models.locate_model("./turbo") == str(tmp_path / "turbo")
    assert models.locate_model("turbo") == str(models.SHIPPED["turbo"])


def test_the_shipped_models_stay_small():
    files = (f for folder in models.SHIPPED.values() for f in folder.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 70e6


N = 8


@pytest.fixture(scope="module")
def turbo():
    """The results of the turbo model at some strengths, eight images of every subject."""

    def draw(repulsion):
        return fastrepulse.sample(
            list(PROMPTS), N, model="turbo", repulsion=repulsion, seed=0, progress=False
        )

    strengths = (0.0, 0.4, 0.8)
    return {None: draw(None)} | {s: draw(Repulsion(strength=s)) for s in strengths}


def test_the_turbo_model_takes_four_steps_without_guidance(turbo):
    settings = turbo[0.4].settings
    assert (settings["num_inference_steps"], settings["guidance_scale"]) == (4, 1.0)
    levels = [step.sigma for step in turbo[0.4].diagnostics]
    assert levels == pytest.approx([14.61, 4.08, 1.61, 0.69], abs=0.01)
    used = settings["repulsion_used"]
    assert used["window"] == {"high": None, "low": levels[1]} and used["strength"] == 0.1
    assert settings["repulsion"]["window"] == "auto"


def test_every_strength_gives_other_images_on_the_turbo_model(turbo):
    assert torch.equal(turbo[0.0].latents, turbo[None].latents)
    for one, other in ((0.0, 0.4), (0.4, 0.8)):
        difference = turbo[one].latents - turbo[other].latents
        assert difference.square().mean().sqrt() > 0.02


def test_repelled_images_of_the_turbo_model_differ_more_and_stay_right(turbo):
    def measured(strength):
        images = turbo[strength].images
        groups = [images[i * N : (i + 1) * N] for i in range(len(SUBJECTS))]
        shown = [
            [values for judged, values in judge(group) if judged is subject]
            for group, subject in zip(groups, SUBJECTS, strict=True)
        ]
        different = sum(map(attribute_vendi, shown)) / len(SUBJECTS)
        off = sum(map(off_data, groups[:4], SUBJECTS[:4])) / 4
        return different, sum(map(len, shown)) / len(images), off

    before, after = measured(0.0), measured(0.4)
    assert after[0] > 1.15 * before[0]
    assert after[1] >= before[1] - 0.02
    assert after[2] < 1.15 * before[2]
