"""The repulsion in diffusers' pipelines of other models: real classes, small random weights."""

import copy
import math
import warnings

import diffusers
import pytest
import torch
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

from fastrepulse import Repulsion, embeddings
from fastrepulse.integrations import RepulsiveScheduler
from fastrepulse.methods.diagnostics import mean_distance
from fastrepulse.schedule import HIGHEST_LEVEL
from helpers import small_pipelines as small
from helpers.small_pipelines import (
    COUNT,
    NOISE,
    SCHEDULERS,
    made,
    noise,
    scheduler_of,
    signal_and_noise,
)
from helpers.tolerances import SAME_COMPUTATION

# diffusers' own, thousands of them
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
STEPS = 4
REPULSION = Repulsion("pooled", 0.5, window=(math.inf, 0.1), pause=None, restart=None)


def draw(pipeline, call):
    settings = {"num_images_per_prompt": COUNT, "num_inference_steps": STEPS, **call}
    generator = torch.Generator().manual_seed(0)
    return pipeline(**settings, generator=generator, output_type="latent").images


def spatial(latents):
    if latents.ndim == 4:
        return latents
    return diffusers.FluxPipeline._unpack_latents(latents, 16, 24, 2)


def spread(latents):
    return mean_distance(embeddings.build("pooled")(spatial(latents)))


FAMILIES = [
    small.stable_diffusion_2,
    small.stable_diffusion_xl,
    small.pixart,
    small.image_to_image,
    small.inpainting,
    small.inpainting_without_its_own_unet,
    small.controlnet,
]
COMMON = ("euler", "ddim", "dpm++")
CASES = [
    *((small.stable_diffusion, short, "epsilon") for short in NOISE),
    *((small.stable_diffusion_2, short, "v_prediction") for short in [*NOISE, "ddim-zero-snr"]),
    *((family, short, "epsilon") for family in FAMILIES for short in COMMON),
    *((small.pixart_sigma, short, "epsilon") for short in ("euler", "dpm++")),
    *((small.lora, short, "epsilon") for short in ("euler", "dpm++")),
    *(
        (small.stable_diffusion_3, short, "flow")
        for short in ("flow-euler", "flow-heun", "flow-dpm++", "flow-unipc")
    ),
    *((small.flux, short, "flow") for short in ("flow-euler", "flow-dpm++dynamic", "flow-unipc")),
]


OTHERS = [
    (family, short, "epsilon") for family in FAMILIES for short in NOISE if short not in COMMON
]
"""Other schedulers, which `CASES` have with `stable_diffusion`."""


@pytest.mark.parametrize(
    ("family", "short", "prediction"),
    [
        pytest.param(
            *case,
            id=f"{case[0].__name__}-{case[1]}-{case[2]}",
            marks=pytest.mark.slow if case in OTHERS else (),
        )
        for case in CASES + OTHERS
    ],
)
def test_strength_zero_is_bit_identical_and_strength_moves_apart(family, short, prediction):
    pipeline, call = made(family, short, prediction)
    plain = pipeline.scheduler
    size = {"latent_size": (8, 12)} if family is small.flux else {}
    alone = draw(pipeline, call)
    pipeline.scheduler = RepulsiveScheduler(plain, Repulsion(strength=0), **size)
    assert torch.equal(draw(pipeline, call), alone)
    pipeline.scheduler = RepulsiveScheduler(plain, REPULSION, **size)
    repelled = draw(pipeline, call)
    assert spread(repelled) > 1.02 * spread(alone)


@pytest.mark.parametrize("short", ["ddim", "dpm++", "unipc"])
def test_the_push_is_the_same_whatever_the_model_predicts(short):
    x0, epsilon = noise(0, COUNT, 4, 8, 8), noise(1, COUNT, 4, 8, 8)
    stepped = {}
    for prediction in ("epsilon", "v_prediction", "sample"):
        plain = scheduler_of(short, prediction)
        plain.set_timesteps(STEPS)
        alpha, sigma = signal_and_noise(plain, 0)
        x = alpha * x0 + sigma * epsilon
        predicted = {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0, "sample": x0}
        given = (predicted[prediction], plain.timesteps[0], x)
        stepped[prediction] = RepulsiveScheduler(plain, REPULSION).step(*given).prev_sample
        assert (stepped[prediction] - plain.step(*given).prev_sample).abs().max() > 0.03
    rtol, atol = SAME_COMPUTATION
    for prediction in ("v_prediction", "sample"):
        torch.testing.assert_close(
            stepped[prediction], stepped["epsilon"], rtol=10 * rtol, atol=10 * atol
        )


@pytest.mark.parametrize("short", SCHEDULERS)
def test_noise_levels_are_those_of_the_scheduler_s_own_forward_process(short):
    count = 2 * STEPS - 1 if "heun" in short else STEPS
    for step in range(count):
        scheduler = scheduler_of(short)
        scheduler.set_timesteps(STEPS, **({"mu": 0.5} if "dynamic" in short else {}))
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(step)
        one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        time = scheduler.timesteps[step : step + 1]
        if hasattr(scheduler, "scale_noise"):
            added = (
                scheduler.scale_noise(*given) for given in ((one, time, zero), (zero, time, one))
            )
        else:
            added = (
                scheduler.add_noise(*given) for given in ((one, zero, time), (zero, one, time))
            )
        assert signal_and_noise(scheduler, step) == pytest.approx(
            [term.item() for term in added], rel=1e-4, abs=2 / HIGHEST_LEVEL
        )


def test_prompts_repel_on_their_own_in_groups_of_neighbours():
    pipeline, call = made(small.stable_diffusion, "euler", prompts=2)
    plain = pipeline.scheduler
    alone = draw(pipeline, call)
    pipeline.scheduler = RepulsiveScheduler(plain, REPULSION, group_size=COUNT)
    both = draw(pipeline, call)
    first = {name: given[:1] if "prompt" in name else given for name, given in call.items()}
    only = draw(pipeline, first)
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(both[:COUNT], only, rtol=rtol, atol=100 * atol)
    assert spread(both[COUNT:]) > 1.02 * spread(alone[COUNT:])


@pytest.mark.parametrize(
    ("family", "short"),
    [
        pytest.param(small.stable_diffusion, "dpm++", id="sd-dpm++"),
        pytest.param(small.stable_diffusion_3, "flow-euler", id="sd3-flow"),
    ],
)
def test_half_precision_stays_what_it_is(family, short):
    pipeline, call = made(family, short)
    pipeline.to(torch.bfloat16)
    call = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    plain = pipeline.scheduler
    alone = draw(pipeline, call)
    pipeline.scheduler = RepulsiveScheduler(plain, Repulsion(strength=0))
    assert torch.equal(draw(pipeline, call), alone)
    pipeline.scheduler = RepulsiveScheduler(plain, REPULSION)
    repelled = draw(pipeline, call)
    assert repelled.dtype == torch.bfloat16
    assert spread(repelled.float()) > 1.02 * spread(alone.float())


def test_pure_noise_is_not_repelled_on():
    pipeline, call = made(small.stable_diffusion_3, "flow-euler")
    plain = pipeline.scheduler
    alone = draw(pipeline, call)
    drawn = {}
    for window in ((math.inf, 0.1), (1000.0, 0.1)):
        repulsion = Repulsion("pooled", 0.5, on="noisy", window=window)
        pipeline.scheduler = RepulsiveScheduler(plain, repulsion)
        drawn[window] = draw(pipeline, call)
    first, second = drawn.values()
    assert torch.equal(first, second)
    assert spread(first) > 1.02 * spread(alone)


def test_modular_pipelines_take_it_as_their_scheduler():
    pipeline, call = made(small.stable_diffusion_xl, "euler")
    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.pop("text_encoder")
    modular = blocks.init_pipeline()
    modular.set_progress_bar_config(disable=True)
    modular.update_components(unet=pipeline.unet, vae=pipeline.vae)
    drawn = []
    for strength in (None, 0.0, 0.5):
        repulsion = Repulsion("pooled", strength or 0.0, window=(math.inf, 0.1))
        scheduler = pipeline.scheduler
        if strength is not None:
            scheduler = RepulsiveScheduler(scheduler, repulsion)
        modular.update_components(scheduler=scheduler)
        settings = {"num_images_per_prompt": COUNT, "num_inference_steps": STEPS, **call}
        generator = torch.Generator().manual_seed(0)
        drawn.append(modular(**settings, generator=generator, output="latents"))
    assert torch.equal(drawn[0], drawn[1])
    assert spread(drawn[2]) > 1.02 * spread(drawn[0])


def test_a_batch_of_one_is_drawn_as_it_is_with_one_warning():
    pipeline, call = made(small.stable_diffusion, "euler")
    call["num_images_per_prompt"] = 1
    alone = draw(pipeline, call)
    pipeline.scheduler = RepulsiveScheduler(pipeline.scheduler, REPULSION)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        drawn = [draw(pipeline, call) for _ in range(2)]
    assert torch.equal(drawn[0], alone) and torch.equal(drawn[1], alone)
    ours = [warning for warning in caught if "batch of one" in str(warning.message)]
    assert len(ours) == 1


@pytest.mark.parametrize(
    "name",
    [
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "CMStochasticIterativeScheduler",
        "VQDiffusionScheduler",
        "IPNDMScheduler",
        "CogVideoXDPMScheduler",
        "LTXEulerAncestralRFScheduler",
        "FlowMapEulerDiscreteScheduler",
        "MiniMaxH3Scheduler",
    ],
)
def test_schedulers_of_other_kinds_are_refused(name):
    arguments = {"num_vec_classes": 4} if name.startswith("VQ") else {}
    with pytest.raises(ValueError, match=f"got {name}"):
        RepulsiveScheduler(getattr(diffusers, name)(**arguments))


def test_noise_levels_that_are_counted_upwards_are_refused():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    with pytest.raises(ValueError, match="invert_sigmas"):
        RepulsiveScheduler(scheduler)


def test_what_is_no_scheduler_or_predicts_a_variance_is_refused():
    pipeline, _ = made(small.stable_diffusion, "euler")
    with pytest.raises(TypeError, match="got StableDiffusionPipeline"):
        RepulsiveScheduler(pipeline)
    repelling = RepulsiveScheduler(scheduler_of("ddim"), REPULSION)
    repelling.set_timesteps(STEPS)
    with pytest.raises(ValueError, match=r"got \[2, 8, 8, 8\]"):
        repelling.step(noise(0, 2, 8, 8, 8), repelling.timesteps[0], noise(1, 2, 4, 8, 8), eta=1.0)


@pytest.mark.parametrize("short", ["euler", "ddim", "dpm++", "unipc", "heun"])
def test_it_behaves_as_the_scheduler_that_it_was(short, tmp_path):
    plain = scheduler_of(short)
    repelling = RepulsiveScheduler(plain, REPULSION)
    for scheduler in (plain, repelling):
        scheduler.set_timesteps(STEPS)
    assert torch.equal(repelling.timesteps, plain.timesteps)
    assert repelling.order == plain.order and repelling.init_noise_sigma == plain.init_noise_sigma
    sample, unit, times = noise(0, 2, 4, 8, 8), noise(1, 2, 4, 8, 8), plain.timesteps[[1, 1]]
    assert torch.equal(
        repelling.add_noise(sample, unit, times), plain.add_noise(sample, unit, times)
    )
    assert torch.equal(
        repelling.scale_model_input(sample, times[0]), plain.scale_model_input(sample, times[0])
    )
    assert type(copy.deepcopy(repelling)) is type(repelling)
    assert copy.deepcopy(repelling).repulsion == REPULSION
    again = type(repelling).from_config(repelling.config)
    assert type(again) is type(plain) and again.config == plain.config
    loaded = []
    for scheduler, folder in ((plain, "plain"), (repelling, "repelling")):
        scheduler.save_pretrained(tmp_path / folder)
        loaded.append(type(plain).from_pretrained(tmp_path / folder))
    assert type(loaded[1]) is type(plain) and loaded[0].config == loaded[1].config
