"""The repulsion between the steps of diffusers' pipelines."""

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch

from fastrepulse import Bank, Repulsion, embeddings, models
from fastrepulse.integrations import RepulsionCallback, RepulsiveScheduler
from fastrepulse.methods.diagnostics import mean_distance
from fastrepulse.noise import initial_noise
from helpers import small_pipelines as small
from helpers.small_pipelines import COUNT, made, noise, scheduler_of, signal_and_noise

# diffusers' own, thousands of them
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
STEPS = 5


def loop(scheduler, callback=None):
    """Steps with a model that always sees the same noise, whatever the latents are."""
    scheduler.set_timesteps(STEPS)
    epsilon = noise(0, COUNT, 4, 8, 8)
    x = epsilon * getattr(scheduler, "init_noise_sigma", 1.0)
    for step, time in enumerate(scheduler.timesteps):
        alpha, sigma = signal_and_noise(scheduler, step)
        flow = isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
        output = epsilon - (x - sigma * epsilon) / alpha if flow else epsilon
        x = scheduler.step(output, time, x).prev_sample
        if callback is not None:
            pipe = SimpleNamespace(scheduler=scheduler)
            x = callback(pipe, step, time, {"latents": x})["latents"]
    return x


@pytest.mark.parametrize("short", ["euler", "ddim", "flow-euler"])
def test_it_is_the_score_correction_one_step_on(short):
    scheduler = scheduler_of(short)
    scheduler.set_timesteps(STEPS)
    alpha, sigma = signal_and_noise(scheduler, 1)
    window = (1.01 * sigma / alpha, 0.0)
    after_the_first = Repulsion("pooled", 0.3, on="noisy", window=window)
    by_callback = loop(scheduler, RepulsionCallback(after_the_first))
    by_score = loop(RepulsiveScheduler(scheduler, after_the_first))
    alone = loop(scheduler)
    assert (by_score - alone).abs().max() > 0.05
    torch.testing.assert_close(by_callback, by_score, rtol=1e-3, atol=1e-3)


def spread(latents):
    if latents.ndim == 3:
        latents = diffusers.FluxPipeline._unpack_latents(latents, 16, 24, 2)
    return mean_distance(embeddings.build("pooled")(latents))


@pytest.mark.parametrize(
    ("family", "short"),
    [
        pytest.param(small.stable_diffusion, "ddim", id="sd-ddim"),
        pytest.param(small.stable_diffusion, "dpm++", id="sd-dpm++"),
        pytest.param(small.stable_diffusion_xl, "euler", id="sdxl-euler"),
        pytest.param(small.stable_diffusion_3, "flow-euler", id="sd3-flow"),
        pytest.param(small.flux, "flow-euler", id="flux-flow"),
        pytest.param(small.image_to_image, "euler", id="img2img-euler"),
    ],
)
def test_strength_zero_is_bit_identical_and_strength_moves_apart(family, short):
    pipeline, call = made(family, short)
    size = {"latent_size": (8, 12)} if family is small.flux else {}

    def draw(callback=None):
        return pipeline(
            **{"num_images_per_prompt": COUNT, "num_inference_steps": STEPS, **call},
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            callback_on_step_end=callback,
        ).images

    alone = draw()
    assert torch.equal(draw(RepulsionCallback(Repulsion(strength=0, on="noisy"), **size)), alone)
    repulsion = Repulsion("pooled", 2.0, on="noisy", window=(100.0, 0.1))
    assert spread(draw(RepulsionCallback(repulsion, **size))) > 1.02 * spread(alone)


def test_on_the_shipped_model_it_comes_near_the_score_correction():
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        models.DEFAULT_MODEL, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    plain = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    repulsion = Repulsion("thirds", 0.3, on="noisy", window=(math.inf, 2.0))
    drawn = []
    for scheduler, callback in (
        (plain, None),
        (RepulsiveScheduler(plain, repulsion), None),
        (plain, RepulsionCallback(repulsion)),
    ):
        pipeline.scheduler = scheduler
        drawn.append(
            pipeline(
                "a planet",
                num_images_per_prompt=4,
                num_inference_steps=20,
                guidance_scale=5.0,
                latents=initial_noise(0, 4, (4, 8, 8)),
                height=32,
                width=32,
                output_type="latent",
                callback_on_step_end=callback,
            ).images
        )
    alone, by_score, by_callback = drawn
    assert (by_callback - by_score).norm() < 0.6 * (by_score - alone).norm()


@pytest.mark.parametrize(
    ("repulsion", "error", "named"),
    [
        (Repulsion("thirds"), ValueError, "on='denoised'"),
        ("thirds", TypeError, "'thirds'"),
    ],
)
def test_what_it_cannot_do_is_said(repulsion, error, named):
    with pytest.raises(error, match=named):
        RepulsionCallback(repulsion)


@pytest.mark.parametrize("short", ["heun", "pndm"])
def test_schedulers_with_several_steps_at_a_noise_level_are_refused(short):
    callback = RepulsionCallback(Repulsion("pooled", 0.3, on="noisy"))
    with pytest.raises(ValueError, match="one step at each noise level"):
        loop(scheduler_of(short), callback)


def test_a_pipeline_that_does_not_hand_over_its_latents_is_refused():
    pipeline, call = made(small.stable_diffusion, "euler")
    with pytest.raises(ValueError, match="must hold 'latents', got \\['prompt_embeds'\\]"):
        pipeline(
            **call,
            num_images_per_prompt=COUNT,
            num_inference_steps=STEPS,
            callback_on_step_end=RepulsionCallback(Repulsion("pooled", on="noisy")),
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )


def test_a_bank_is_closed_by_the_last_step():
    scheduler, bank = scheduler_of("euler"), Bank()
    repulsion = Repulsion("pooled", 0.3, on="noisy", window=(100.0, 0.1), bank=bank)
    loop(scheduler, RepulsionCallback(repulsion))
    assert len(bank) == COUNT
