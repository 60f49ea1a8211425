"""More images than fit at once: micro-batches of a pipeline in lockstep."""

import os
import signal
import time

import diffusers
import pytest
import torch

import fastrepulse
from fastrepulse import Bank, Repulsion, models, repel
from helpers import small_pipelines as small

# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
COUNT = 5
REPULSION = Repulsion("pooled", 0.5, window=(1e9, 2), pause=(5, 0.5), restart=(1.5, 0.5))


@pytest.fixture
def made():
    return small.made(small.stable_diffusion, "dpm++")


def sample(made, count=COUNT, repulsion=REPULSION, prompt=None, **more):
    pipeline, call = made
    how = {"progress": False, "num_inference_steps": 8, "output_type": "latent", **call, **more}
    generator = how.pop("generator", None) or torch.Generator().manual_seed(0)
    return repel(pipeline, repulsion).sample(prompt, count, generator=generator, **how).images


@pytest.mark.parametrize("short", ["euler-ancestral", "heun", "dpm++sde"])
def test_stochastic_and_second_order_schedulers_draw_the_images_of_one_batch(short):
    made = small.made(small.stable_diffusion, short)
    one, several = sample(made), sample(made, micro_batch_size=2)
    torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", [small.image_to_image, small.inpainting])
def test_images_that_a_run_starts_from_are_encoded_with_the_noise_of_each_row(family):
    made = small.made(family, "ddim")
    one, several = sample(made), sample(made, micro_batch_size=2)
    torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-3)
    images = {"image": small.noise(8, COUNT, 3, 16, 16).clamp(-1, 1)}
    pipeline, call = made
    one, several = (sample((pipeline, call | images), micro_batch_size=size) for size in (5, 2))
    torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-3)


def test_micro_batches_of_the_shipped_model_draw_what_sample_draws():
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        models.DEFAULT_MODEL, torch_dtype=torch.float32
    )
    config = {**pipeline.scheduler.config, "steps_offset": 1}
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    prompts, how = ["a planet", "a robot"], {"num_inference_steps": 8, "guidance_scale": 5.0}
    theirs = repel(pipeline, seed=0).sample(
        prompts,
        3,
        micro_batch_size=2,
        latents=small.noise(0, 3, 4, 16, 16),
        output_type="latent",
        progress=False,
        **how,
    )
    ours = fastrepulse.sample(prompts, 3, seed=0, progress=False, **how)
    torch.testing.assert_close(theirs.images, ours.latents, rtol=1e-4, atol=1e-3)
    assert type(theirs).__name__ == "StableDiffusionPipelineOutput"


def test_outputs_of_every_form_are_joined(made):
    assert len(sample(made, micro_batch_size=2, output_type="pil")) == COUNT
    pipeline, call = made
    how = {"progress": False, "num_inference_steps": 2, "return_dict": False, **call}
    images, flags = repel(pipeline).sample(None, 3, micro_batch_size=2, output_type="np", **how)
    assert images.shape[0] == 3 and flags is None


def test_latents_of_each_image_go_to_the_micro_batch_that_draws_the_image(made):
    noise = small.noise(0, COUNT, 4, 8, 8)
    one = sample(made, latents=noise)
    torch.testing.assert_close(
        sample(made, latents=noise, micro_batch_size=2), one, rtol=1e-3, atol=1e-3
    )


def test_later_micro_batches_of_another_call_repel_from_a_bank(made):
    bank = Bank()
    repulsion = Repulsion("pooled", 0.5, window=(1e9, 2), restart=None, bank=bank)
    first = sample(made, repulsion=repulsion, micro_batch_size=2)
    assert len(bank) == COUNT
    assert not torch.allclose(
        sample(made, repulsion=repulsion, micro_batch_size=2), first, atol=0.1
    )
    assert len(bank) == 2 * COUNT


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_one_call_ends_all_and_the_pipeline_is_as_it_was(made, error):
    pipeline, _ = made
    parts, calls = dict(vars(pipeline)), []

    def fail(pipe, step, timestep, kwargs):
        calls.append(step)
        if len(calls) == 4:
            raise error("here")
        return kwargs

    with pytest.raises(error, match="here"):
        sample(made, micro_batch_size=2, callback_on_step_end=fail)
    assert len(calls) == 4
    assert all(vars(pipeline)[name] is part for name, part in parts.items())


def test_ctrl_c_ends_a_call_after_its_step_even_if_nothing_is_pushed(made):
    steps = []

    def interrupt(pipe, step, timestep, kwargs):
        steps.append(step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return kwargs

    with pytest.raises(KeyboardInterrupt):
        sample(made, repulsion=Repulsion(strength=0), callback_on_step_end=interrupt)
    assert steps == [0, 1, 2]


def test_a_warning_comes_once_for_all_micro_batches(made, caplog):
    sample(made, repulsion=Repulsion("pooled", window=(1e4, 9e3)), micro_batch_size=1)
    assert [record.getMessage()[:16] for record in caplog.records] == ["no step lies in "]
    caplog.clear()
    image = small.made(small.image_to_image, "dpm++")
    sample(image, micro_batch_size=1)
    assert [record.getMessage()[:20] for record in caplog.records] == ["there is no restart,"]


def test_progress_counts_images(made, capsys):
    sample(made, micro_batch_size=2, progress=True)
    assert "5/5" in capsys.readouterr().err


def test_one_image_is_the_pipeline_s_own_with_a_warning(made):
    pipeline, call = made
    alone = pipeline(
        **call,
        num_inference_steps=8,
        output_type="latent",
        generator=torch.Generator().manual_seed(7),
    ).images
    with pytest.warns(UserWarning, match="a batch of one"):
        drawn = sample(made, 1, generator=[torch.Generator().manual_seed(7)])
    assert torch.equal(drawn, alone)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"count": 0}, ValueError, "num_images must be at least 1, got 0"),
        ({"micro_batch_size": 1.5}, TypeError, "micro_batch_size must be an int, got 1.5"),
        ({"generator": [torch.Generator()]}, ValueError, "generator must be one or 5, got 1"),
    ],
)
def test_bad_arguments_are_named(made, arguments, error, named):
    with pytest.raises(error, match=named):
        sample(made, **arguments)
