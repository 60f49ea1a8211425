"""The push, the pause and the restart in diffusers' own pipeline."""

import inspect

import diffusers
import pytest
import torch
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks, WanBlocks

import fastrepulse
from fastrepulse import Repulsion, models, repel
from fastrepulse.integrations import RepulsiveScheduler
from fastrepulse.noise import initial_noise
from fastrepulse.schedule import noise_level
from helpers import small_pipelines as small
from helpers.tolerances import SAME_COMPUTATION

# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
COUNT = 3
STRONG = Repulsion("pooled", 0.5, window=(1e9, 2), pause=(5, 0.5), restart=(1.5, 0.5))


def scheduled(pipeline, short):
    config = {**pipeline.scheduler.config, "steps_offset": 1, "clip_sample": False}
    pipeline.scheduler = getattr(diffusers, models.SCHEDULERS[short]).from_config(config)
    return pipeline


def draw(pipeline, prompts="a potted plant", **call):
    number = 1 if isinstance(prompts, str) else len(prompts)
    noise = initial_noise(0, COUNT, (4, 16, 16)).repeat(number, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    settings = {"num_images_per_prompt": COUNT, "latents": noise, "generator": generator, **call}
    return pipeline(prompts, **settings, output_type="latent").images


def small_images(pipeline, call, **more):
    generator = torch.Generator().manual_seed(0)
    settings = {"num_images_per_prompt": COUNT, "num_inference_steps": 8, **call, **more}
    return pipeline(**settings, generator=generator, output_type="latent").images


@pytest.mark.parametrize(
    ("short", "steps", "scale", "prompts"),
    [
        pytest.param("euler", 10, 5.0, ["a planet", "a robot"], id="euler-two-prompts"),
        pytest.param("ddim", 10, 5.0, "a potted plant", id="ddim"),
        pytest.param("dpm++", 12, 5.0, "a potted plant", id="dpm++"),
        pytest.param("unipc", 10, 5.0, "a potted plant", id="unipc"),
        pytest.param("dpm++", 10, 1.0, "a potted plant", id="without-guidance"),
        pytest.param("unipc", 8, 1.0, "a potted plant", id="few-steps-without-guidance"),
    ],
)
def test_a_pipeline_draws_what_sample_draws(pipeline, short, steps, scale, prompts):
    how = {"num_inference_steps": steps, "guidance_scale": scale}
    ours = fastrepulse.sample(prompts, COUNT, scheduler=short, seed=0, progress=False, **how)
    with repel(scheduled(pipeline, short)):
        theirs = draw(pipeline, prompts, **how)
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(theirs, ours.latents, rtol=rtol, atol=10 * atol)
    # The comparison is of a run with a restart, but for few steps
    assert len(ours.diagnostics) > steps or steps == 8


def test_the_pipeline_is_as_it_was_afterwards_even_after_an_error(pipeline):
    scheduled(pipeline, "euler")
    kind, parts = type(pipeline), dict(vars(pipeline))
    with repel(pipeline) as same:
        assert same is pipeline and isinstance(pipeline, diffusers.StableDiffusionPipeline)
        with pytest.raises(ZeroDivisionError):
            draw(pipeline, num_inference_steps=4, callback_on_step_end=lambda *_: 1 / 0)
        assert vars(pipeline)["unet"] is parts["unet"]
    assert type(pipeline) is kind
    assert all(vars(pipeline)[name] is part for name, part in parts.items() if name[0] != "_")
    alone = draw(pipeline, num_inference_steps=4)
    assert torch.equal(
        repel(pipeline, Repulsion(strength=0))(
            "a potted plant",
            num_images_per_prompt=COUNT,
            num_inference_steps=4,
            output_type="latent",
            latents=initial_noise(0, COUNT, (4, 16, 16)),
        ).images,
        alone,
    )


def test_the_callback_of_the_user_sees_every_step_and_the_new_noise_of_the_restart():
    pipeline, call = small.made(small.stable_diffusion, "ddim")
    runs = []
    for seed in (1, 2):
        seen = []

        def look(_, step, timestep, kwargs, seen=seen):
            seen.append((step, int(timestep), kwargs["latents"].clone()))
            return kwargs

        with repel(pipeline, STRONG, seed=seed):
            small_images(pipeline, call, callback_on_step_end=look)
        runs.append(seen)
    steps, times, latents = zip(*runs[0], strict=True)
    assert steps == tuple(range(len(steps))) and len(steps) > 8
    (jump,) = (i for i in range(1, len(times)) if times[i] > times[i - 1])
    change = latents[jump - 1] - runs[1][jump - 1][2]
    assert torch.equal(latents[jump - 2], runs[1][jump - 2][2])
    # Both have unit noise of their own at the signal of the step that the run goes back to
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(8)
    levels = {int(t): noise_level(scheduler, i) for i, t in enumerate(scheduler.timesteps)}
    low, high = (levels[t] for t in (next(t for t in levels if levels[t] <= 0.5), times[jump]))
    expected = (2 * (high**2 - low**2) / (1 + high**2)) ** 0.5
    assert float(change.std()) == pytest.approx(expected, rel=0.1)


def test_a_modular_pipeline_draws_what_the_pipeline_of_the_same_parts_draws():
    pipeline, call = small.made(small.stable_diffusion_xl, "euler")
    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.pop("text_encoder")
    modular = blocks.init_pipeline()
    modular.update_components(unet=pipeline.unet, vae=pipeline.vae, scheduler=pipeline.scheduler)
    how = {"num_inference_steps": 8, **call}
    generators = [torch.Generator().manual_seed(i) for i in range(COUNT)]
    scale = modular.guider.guidance_scale
    one = (
        repel(pipeline, STRONG)
        .sample(
            None,
            COUNT,
            generator=generators,
            progress=False,
            guidance_scale=scale,
            output_type="latent",
            **how,
        )
        .images
    )
    for size in (COUNT, 2):
        drawn = repel(modular, STRONG).sample(
            None,
            COUNT,
            micro_batch_size=size,
            generator=generators,
            progress=False,
            output="latents",
            **how,
        )
        torch.testing.assert_close(drawn, one, rtol=1e-3, atol=1e-3)
    with repel(modular, Repulsion(strength=0)):
        alone = modular(num_images_per_prompt=COUNT, output="latents", **how)
    assert not torch.allclose(alone, one, atol=0.1)
    assert isinstance(modular.guider, diffusers.guiders.ClassifierFreeGuidance)


@pytest.mark.parametrize("short", ["heun", "euler-ancestral", "dpm++sde", "lcm"])
def test_other_schedulers_restart_too(short):
    pipeline, call = small.made(small.stable_diffusion, short)
    taken = []
    keep = {"callback_on_step_end": lambda pipe, i, t, kwargs: taken.append(float(t)) or kwargs}
    with repel(pipeline, STRONG):
        assert small_images(pipeline, call, **keep).isfinite().all()
    rises = [i for i in range(1, len(taken)) if taken[i] > taken[i - 1]]
    assert len(rises) == 1
    assert small_images(pipeline, call).isfinite().all()


@pytest.mark.parametrize("arguments", [{"sigmas": [0.95, 0.9, 0.8, 0.6, 0.3, 0.1]}])
def test_noise_levels_of_the_user_are_repelled_and_restarted_on(arguments):
    pipeline, call = small.made(small.stable_diffusion_3, "flow-euler")
    taken = []
    keep = {"callback_on_step_end": lambda pipe, i, t, kwargs: taken.append(float(t)) or kwargs}
    with repel(pipeline, STRONG):
        small_images(pipeline, {**call, **arguments}, **keep)
    assert len(taken) > len(arguments["sigmas"])


@pytest.mark.parametrize(
    ("family", "short", "why"),
    [
        (small.image_to_image, "dpm++", "image to image at strength 0.8 starts late"),
        (small.stable_diffusion, "pndm", "PNDMScheduler cannot start in the middle"),
    ],
)
def test_a_run_that_cannot_restart_is_repelled_and_says_why(family, short, why, caplog):
    pipeline, call = small.made(family, short)
    alone = small_images(pipeline, call)
    with repel(pipeline, STRONG):
        repelled = small_images(pipeline, call)
    assert repelled.isfinite().all() and not torch.allclose(repelled, alone, atol=0.1)
    (record,) = caplog.records
    assert record.getMessage() == f"there is no restart, since {why}"


def test_latents_of_another_size_than_the_call_says_are_named_if_that_changes_the_restart(caplog):
    pipeline, call = small.made(small.pixart, "dpm++")
    with repel(pipeline, "pooled", latent_size=(32, 32)):
        small_images(pipeline, call)
    (record,) = caplog.records
    assert "the latents have 8 x 8 positions where" in record.getMessage()
    caplog.clear()
    with repel(pipeline, STRONG, latent_size=(32, 32)):
        small_images(pipeline, call)
    assert not caplog.records


def test_one_image_is_drawn_as_it_is_with_a_warning():
    pipeline, call = small.made(small.stable_diffusion, "euler")
    call["num_images_per_prompt"] = 1
    alone = small_images(pipeline, call)
    with repel(pipeline), pytest.warns(UserWarning, match="a batch of one"):
        assert torch.equal(small_images(pipeline, call), alone)


def empty(name):
    """A pipeline of a class without its parts."""
    kind = getattr(diffusers, name)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return kind(**{each.name: None for each in parameters if each.default is each.empty})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("AnimateDiffPipeline", "draws videos"),
        ("WanPipeline", "draws videos"),
        ("StableDiffusionPAGPipeline", "computes more than two predictions"),
        ("StableDiffusionInstructPix2PixPipeline", "computes more than two predictions"),
        ("AudioLDM2Pipeline", "draws sound"),
        ("StableCascadePriorPipeline", "has neither a unet nor a transformer"),
    ],
)
def test_pipelines_that_cannot_be_served_are_refused_by_name(name, why):
    with pytest.raises(ValueError, match=f"got {name}, which {why}"):
        repel(empty(name))


def test_what_repels_already_and_what_is_no_pipeline_is_refused():
    pipeline, call = small.made(small.stable_diffusion, "euler")
    with repel(pipeline), pytest.raises(ValueError, match="repels already"), repel(pipeline):
        pass
    pipeline.scheduler = RepulsiveScheduler(pipeline.scheduler)
    with repel(pipeline), pytest.raises(ValueError, match="repels already"):
        small_images(pipeline, call)
    with pytest.raises(ValueError, match="got WanModularPipeline, which draws videos"):
        repel(WanBlocks().init_pipeline())
    with pytest.raises(TypeError, match="got EulerDiscreteScheduler"):
        repel(small.scheduler_of("euler"))
    with pytest.raises(TypeError, match="got 3"):
        repel(pipeline, 3)
