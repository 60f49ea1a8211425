"""The repulsion inside diffusers' own pipeline."""

import json
import math

import diffusers
import pytest
import torch

import fastrepulse
from fastrepulse import Bank, Repulsion, models
from fastrepulse.integrations import RepulsiveScheduler
from fastrepulse.methods.base import Particles
from fastrepulse.noise import initial_noise
from helpers.tolerances import SAME_COMPUTATION

PROMPT = "a potted plant"
STEPS = 6
SCHEDULERS = [
    "EulerDiscreteScheduler",
    "DDPMScheduler",
    # test_pipelines.py draws with these, too
    *(
        pytest.param(f"{name}Scheduler", marks=pytest.mark.slow)
        for name in (
            "EulerAncestralDiscrete",
            "HeunDiscrete",
            "DDIM",
            "DPMSolverMultistep",
            "UniPCMultistep",
        )
    ),
]


def plain(pipeline, name):
    config = {**pipeline.scheduler.config, "steps_offset": 1, "clip_sample": False}
    return getattr(diffusers, name).from_config(config)


def draw(pipeline, scheduler, prompt=PROMPT, count=4):
    pipeline.scheduler = scheduler
    prompts = 1 if isinstance(prompt, str) else len(prompt)
    return pipeline(
        prompt,
        num_images_per_prompt=count,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        latents=initial_noise(0, count, (4, 16, 16)).repeat(prompts, 1, 1, 1),
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


def spread(latents):
    return torch.pdist(latents.float().flatten(1)).mean()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_strength_zero_is_the_pipeline_bit_for_bit_and_strength_moves_apart(pipeline, name):
    scheduler = plain(pipeline, name)
    alone = draw(pipeline, scheduler)
    assert torch.equal(draw(pipeline, RepulsiveScheduler(scheduler, Repulsion(strength=0))), alone)
    repelled = RepulsiveScheduler(scheduler, Repulsion("latent", 4.0, window=(math.inf, 1.0)))
    assert spread(draw(pipeline, repelled)) > 1.02 * spread(alone)


@pytest.mark.parametrize("short", models.SCHEDULERS)
@pytest.mark.parametrize("on", ["noisy", "denoised"])
def test_it_draws_what_sample_draws(pipeline, short, on):
    strength = 2.0 if on == "denoised" else 0.3
    # A pipeline guides at every step
    how = {"pause": None, "restart": None}
    repulsion = Repulsion("thirds", strength, on=on, window=(math.inf, 1.5), **how)
    scheduler = plain(pipeline, models.SCHEDULERS[short])
    ours = fastrepulse.sample(
        [PROMPT, "a planet"],
        3,
        repulsion=repulsion,
        scheduler=short,
        num_inference_steps=STEPS,
        seed=0,
        progress=False,
    )
    theirs = draw(
        pipeline,
        RepulsiveScheduler(scheduler, repulsion, group_size=3),
        prompt=[PROMPT, "a planet"],
        count=3,
    )
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(theirs, ours.latents, rtol=rtol, atol=10 * atol)


def test_it_saves_as_the_scheduler_that_it_was(pipeline, tmp_path):
    scheduler = plain(pipeline, "DPMSolverMultistepScheduler")
    pipeline.scheduler = RepulsiveScheduler(scheduler, "thirds")
    assert isinstance(pipeline.scheduler, diffusers.DPMSolverMultistepScheduler)
    assert pipeline.scheduler.config == scheduler.config
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is diffusers.DPMSolverMultistepScheduler
    again = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    assert type(again) is diffusers.DPMSolverMultistepScheduler


def test_flow_matching_moves_the_clean_prediction_by_the_repulsion():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    x, x0 = initial_noise(0, 5, (16, 8, 8)), 0.3 * initial_noise(1, 5, (16, 8, 8))
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    sigma, following = (float(s) for s in scheduler.sigmas[1:3])
    velocity = (x - x0) / sigma
    repulsion = Repulsion("pooled", 0.5, window=(math.inf, 0.0))
    repelling = RepulsiveScheduler(scheduler, repulsion)
    time = scheduler.timesteps[1]
    moved = repelling.step(velocity, time, x).prev_sample
    alone = scheduler.step(velocity, time, x).prev_sample
    level = sigma / (1 - sigma)
    particles = Particles(
        x0, lambda part: x[part] / (1 - sigma), level, following / (1 - following), 1, False, 5, 0
    )
    change = level**2 * torch.cat(list(repulsion.push(particles).changes))
    torch.testing.assert_close(
        moved - alone, (sigma - following) / sigma * change, rtol=1e-3, atol=1e-5
    )


def test_packed_latents_are_unpacked_for_the_embedding():
    x, x0 = initial_noise(0, 3, (16, 8, 12)), 0.3 * initial_noise(1, 3, (16, 8, 12))

    def pack(latents):
        return diffusers.FluxPipeline._pack_latents(latents, 3, 16, 8, 12)

    results = []
    for as_held in (lambda z: z, pack):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(1)
        velocity = (x - x0) / float(scheduler.sigmas[1])
        repelling = RepulsiveScheduler(
            scheduler, Repulsion("thirds", window=(math.inf, 0.0)), latent_size=(8, 12)
        )
        results.append(
            repelling.step(as_held(velocity), scheduler.timesteps[1], as_held(x)).prev_sample
        )
    torch.testing.assert_close(results[1], pack(results[0]))


@pytest.mark.parametrize("kind", ["Euler", "Heun"])
def test_a_bank_grows_with_each_call_and_changes_the_next(pipeline, kind):
    bank = Bank()
    scheduler = plain(pipeline, f"{kind}DiscreteScheduler")
    repelling = RepulsiveScheduler(scheduler, Repulsion("thirds", 0.4, bank=bank))
    first = draw(pipeline, repelling)
    assert len(bank) == len(first)
    assert not torch.allclose(draw(pipeline, repelling), first, atol=1e-3)
    assert len(bank) == 2 * len(first)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"repulsion": "colour"}, ValueError, "'colour'"),
        ({"repulsion": 3}, TypeError, "3"),
        ({"group_size": 1}, ValueError, "group_size must be at least 2, got 1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    with pytest.raises(error, match=named):
        RepulsiveScheduler(diffusers.EulerDiscreteScheduler(), **arguments)


def test_a_batch_that_does_not_divide_and_a_second_wrapping_are_refused(pipeline):
    scheduler = plain(pipeline, "EulerDiscreteScheduler")
    repelling = RepulsiveScheduler(scheduler, group_size=3)
    with pytest.raises(ValueError, match="group_size must divide the batch of 4, got 3"):
        draw(pipeline, repelling)
    with pytest.raises(ValueError, match="repels already"):
        RepulsiveScheduler(repelling)


def test_a_window_without_a_step_is_named_once_a_run(caplog):
    scheduler = RepulsiveScheduler(
        diffusers.EulerDiscreteScheduler(), Repulsion("pooled", window=(1e4, 9e3))
    )
    for steps in (4, 6):
        caplog.clear()
        scheduler.set_timesteps(steps)
        x = scheduler.init_noise_sigma * initial_noise(0, 3, (4, 16, 16))
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, timestep)
            x = scheduler.step(torch.zeros_like(scaled), timestep, x).prev_sample
        (record,) = caplog.records
        assert record.getMessage().count(",") == 1 + steps
