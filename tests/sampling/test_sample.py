"""Sampling from the shipped model, with and without repulsion."""

import copy
import math
from dataclasses import replace
from functools import cache

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion, embeddings, models
from fastrepulse.noise import initial_noise
from helpers.tolerances import SAME_COMPUTATION

PROMPT = "a potted plant"
STEPS = 6


def draw(**arguments):
    settings = {"num_particles": 6, "num_inference_steps": STEPS, "seed": 0, "progress": False}
    return fastrepulse.sample(PROMPT, **{**settings, **arguments})


def mean_distance(latents, embedding="pooled"):
    return torch.pdist(embeddings.build(embedding)(latents)).mean().item()


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(
        models.DEFAULT_MODEL, torch_dtype=torch.float32
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


def as_diffusers(pipeline, latents, scheduler, **arguments):
    import diffusers

    kind = getattr(diffusers, models.SCHEDULERS[scheduler])
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    arguments = {"guidance_scale": 5.0, "num_inference_steps": STEPS, **arguments}
    count = len(latents)
    return (
        pipeline(
            PROMPT, num_images_per_prompt=count, latents=latents, output_type="latent", **arguments
        ).images
        / 1.0
    )


@pytest.mark.parametrize("scheduler", models.SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_without_repulsion_the_latents_equal_those_of_diffusers(
    pipeline, scheduler, guidance_scale
):
    latents = initial_noise(0, 3, (4, 16, 16))
    expected = as_diffusers(pipeline, latents.clone(), scheduler, guidance_scale=guidance_scale)
    result = draw(
        num_particles=3, repulsion=None, scheduler=scheduler, guidance_scale=guidance_scale
    )
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(result.latents, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc"])
def test_multistep_schedulers_on_a_model_of_clean_latents_equal_diffusers(pipeline, scheduler):
    # A model of clean latents: the scheduler keeps outputs without a conversion
    predicts = copy.copy(pipeline)
    config = {**pipeline.scheduler.config, "prediction_type": "sample"}
    predicts.scheduler = type(pipeline.scheduler).from_config(config)
    latents = initial_noise(2, 2, (4, 16, 16))
    # No guidance: it would amplify rounding, as the model never learnt this prediction
    settings = {"scheduler": scheduler, "guidance_scale": 1.0}
    result = draw(model=predicts, latents=latents, num_particles=2, repulsion=None, **settings)
    expected = as_diffusers(predicts, latents.clone(), **settings)
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(result.latents, expected, rtol=rtol, atol=atol)


def test_a_negative_prompt_and_another_size_equal_diffusers(pipeline):
    latents = initial_noise(4, 2, (4, 20, 12))
    expected = as_diffusers(
        pipeline, latents.clone(), "euler", negative_prompt="a planet", height=80, width=48
    )
    result = draw(
        num_particles=2, seed=4, repulsion=None, negative_prompt="a planet", height=80, width=48
    )
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(result.latents, expected, rtol=rtol, atol=atol)
    assert result.images[0].size == (48, 80)


@cache
def independent_latents(scheduler):
    return draw(repulsion=None, scheduler=scheduler).latents


@pytest.mark.parametrize(
    ("embedding", "scheduler"),
    [
        pytest.param(
            *(embedding, scheduler),
            id=f"{embedding}-{scheduler}",
            marks=() if embedding == "thirds" or scheduler == "euler" else pytest.mark.slow,
        )
        for embedding in ("channel_mean", "halves", "thirds", "pooled")
        for scheduler in models.SCHEDULERS
    ],
)
def test_repulsion_moves_particles_apart_and_attraction_together(embedding, scheduler):
    strength = 1.0
    distance = {
        sign: mean_distance(
            draw(
                repulsion=Repulsion(
                    embedding, sign * strength, on="denoised", window=(math.inf, 1.5), pause=None
                ),
                scheduler=scheduler,
            ).latents,
            embedding,
        )
        for sign in (-1, 1)
    }
    distance[0] = mean_distance(independent_latents(scheduler), embedding)
    assert distance[-1] < distance[0] < distance[1]


def test_repulsion_on_noisy_latents_moves_particles_apart():
    how = {"on": "noisy", "window": (math.inf, 1.5), "pause": None}
    apart, alone = (draw(repulsion=Repulsion("thirds", s, **how)).latents for s in (0.3, 0.0))
    assert mean_distance(apart, "thirds") > mean_distance(alone, "thirds")


@pytest.mark.parametrize("embedding", ["random_cnn", "latent"])
def test_the_other_embeddings_change_the_result(embedding):
    apart, alone = (
        draw(repulsion=Repulsion(embedding, s, restart=None)).latents for s in (9.0, 0.0)
    )
    assert (apart - alone).abs().max() > 1e-3
    assert mean_distance(apart, "latent") > mean_distance(alone, "latent")


def test_strength_zero_gives_diagnostics_and_does_not_change_the_latents():
    off, measured = draw(repulsion=None), draw(repulsion=Repulsion(strength=0.0))
    assert torch.equal(off.latents, measured.latents)
    assert all(math.isnan(step.bandwidth) for step in off.diagnostics)
    assert all(step.bandwidth > 0 and step.force_norm > 0 for step in measured.diagnostics)


def test_outside_its_window_the_repulsion_does_nothing():
    off = draw(repulsion=None)
    outside = draw(repulsion=Repulsion(strength=50.0, window=(1e9, 1e6), pause=None, restart=None))
    assert torch.equal(off.latents, outside.latents)


def test_the_noise_of_a_particle_depends_only_on_seed_and_index():
    few, many = initial_noise(7, 3, (4, 16, 16)), initial_noise(7, 40, (4, 16, 16))
    assert torch.equal(few, many[:3])
    assert not torch.equal(few, initial_noise(8, 3, (4, 16, 16)))
    assert many.mean().abs() < 0.02 and abs(many.std() - 1) < 0.02
    correlation = torch.corrcoef(many.flatten(1)) - torch.eye(40)
    assert correlation.abs().max() < 0.2


def test_independent_particles_do_not_depend_on_each_other():
    rtol, atol = SAME_COMPUTATION
    few, many = draw(num_particles=2, repulsion=None), draw(num_particles=5, repulsion=None)
    torch.testing.assert_close(few.latents, many.latents[:2], rtol=rtol, atol=10 * atol)


def test_several_prompts_repel_only_within_their_prompt():
    rtol, atol = SAME_COMPUTATION
    settings = {"num_inference_steps": STEPS, "seed": 0, "progress": False}
    both = fastrepulse.sample([PROMPT, "a planet"], 3, **settings)
    alone = [fastrepulse.sample(p, 3, **settings).latents for p in (PROMPT, "a planet")]
    assert len(both.images) == 6
    torch.testing.assert_close(both.latents, torch.cat(alone), rtol=rtol, atol=10 * atol)


def test_one_particle_is_not_repelled():
    assert torch.equal(draw(num_particles=1).latents, draw(num_particles=1, repulsion=None).latents)


def test_seeds_generators_and_latents():
    first, again = (
        draw(seed=None, generator=torch.Generator().manual_seed(5)).latents for _ in range(2)
    )
    assert torch.equal(first, again)
    given = draw(latents=initial_noise(0, 6, (4, 16, 16)))
    assert torch.equal(given.latents, draw().latents)
    unseeded = draw(seed=None)
    assert torch.equal(draw(seed=unseeded.settings["seed"]).latents, unseeded.latents)


def test_diagnostics_have_one_entry_a_step():
    result = draw(repulsion=Repulsion(restart=None))
    assert len(result.diagnostics) == STEPS
    sigmas = [step.sigma for step in result.diagnostics]
    assert sigmas == sorted(sigmas, reverse=True)
    assert all(step.score_norm > 0 for step in result.diagnostics)
    assert all(step.mean_pairwise_distance > 0 for step in result.diagnostics)


def test_a_callback_is_called_after_every_step_and_can_stop_the_run():
    told = []
    result = draw(callback_on_step_end=lambda end: told.append(replace(end, denoised=None)))
    assert [end.taken for end in told] == list(range(1, told[0].of + 1))
    assert [end.diagnostics for end in told] == result.diagnostics
    assert {end.of for end in told} == {len(result.diagnostics)}
    seen = []
    draw(callback_on_step_end=lambda end: seen.append(end.denoised.clone()))
    # The clean predictions approach the final latents
    error = [(denoised - result.latents).square().mean().sqrt() for denoised in seen]
    assert error[-1] < 0.05 and error[-1] < error[0] / 10

    def stop(end):
        if end.taken == 3:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        draw(callback_on_step_end=stop)
    with pytest.raises(TypeError, match="callback_on_step_end must be a function or None, got 3"):
        draw(callback_on_step_end=3)


def test_every_embedding_has_its_own_default_strength():
    assert draw(repulsion="thirds", num_inference_steps=1).settings["repulsion"]["strength"] == 0.4
    assert Repulsion().strength == 0.4 and Repulsion("random_cnn").strength == 1.0
    assert Repulsion(embeddings.Gram("style_classifier")).strength == 0.4
    assert Repulsion(lambda z: z.flatten(1)).strength == 0.4
    assert Repulsion("thirds", 0).strength == 0


def test_errors_name_where_values_stopped_being_finite():
    noise = initial_noise(0, 6, (4, 16, 16))
    noise[4, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"model's output .* step 0, particle 4"):
        draw(latents=noise)
    with pytest.raises(FloatingPointError, match=r"embedding is not finite at step 0, particle 0"):
        draw(repulsion=Repulsion(lambda x: x.flatten(1) / 0))
    with pytest.raises(FloatingPointError, match=r"repulsion is not finite at step 0"):
        draw(repulsion=Repulsion(lambda x: (x.flatten(1) * 0).sqrt() + x.mean((1, 2, 3))[:, None]))
