"""`sample` with a pipeline that keeps its own loop."""

import json

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion, methods
from helpers import small_pipelines as small

# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
HOW = {"num_inference_steps": 8, "height": 16, "width": 16, "progress": False}
REPULSION = Repulsion("pooled", 0.5, window=(1e9, 2), pause=(9, 0.3), restart=(1.5, 0.5))


@pytest.fixture(scope="module")
def pipeline():
    made = small.whole_stable_diffusion_3(fastrepulse.load_model().tokenizer)
    made.set_progress_bar_config(disable=True)
    return made


def sample(pipeline, prompt="a planet", count=3, **how):
    return fastrepulse.sample(prompt, count, model=pipeline, **{"seed": 0, **HOW, **how})


def test_micro_batches_and_later_prompts_do_not_change_the_images_of_a_prompt(pipeline):
    one = sample(pipeline, repulsion=REPULSION, guidance_scale=4.0)
    several = sample(
        pipeline,
        ["a planet", "a robot"],
        repulsion=REPULSION,
        guidance_scale=4.0,
        micro_batch_size=2,
    )
    assert len(one.images) == 3 and len(several.images) == 6
    assert one.images[0].size == (16, 16) and one.latents.shape == (3, 4, 8, 8)
    torch.testing.assert_close(several.latents[:3], one.latents, rtol=1e-3, atol=1e-3)
    alone = sample(pipeline, repulsion=None, guidance_scale=4.0)
    assert not torch.allclose(alone.latents, one.latents, atol=0.1)


def test_without_a_repulsion_the_images_are_the_pipeline_s_own(pipeline):
    result = sample(pipeline, repulsion=None, guidance_scale=4.0, negative_prompt="a robot")
    expected = pipeline(
        "a planet",
        negative_prompt="a robot",
        num_images_per_prompt=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(i) for i in range(3)],
        output_type="latent",
        num_inference_steps=8,
        height=16,
        width=16,
    ).images
    assert torch.equal(result.latents, expected)


def test_the_result_is_saved_with_its_settings(pipeline, tmp_path):
    result = sample(pipeline, out=tmp_path / "out", repulsion="pooled")
    record = json.loads((tmp_path / "out" / "sample.json").read_text())
    assert record["settings"] == result.settings
    assert result.settings["model"] == "StableDiffusion3Pipeline"
    assert result.settings["repulsion"]["embedding"] == "pooled"
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    assert result.grid().size[0] > 16


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"scheduler": "ddim"}, "scheduler must be 'euler' for StableDiffusion3Pipeline"),
        ({"compile": True}, "compile must be 'auto' for StableDiffusion3Pipeline"),
        ({"repulsion": methods.TextNoise(0.5)}, "got TextNoise"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_what_has_no_meaning_there_is_refused_by_name(pipeline, arguments, named):
    with pytest.raises(ValueError, match=named):
        sample(pipeline, **arguments)
