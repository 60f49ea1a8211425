"""The ComfyUI node in a stand-in for ComfyUI's samplers."""

import itertools
import re
from pathlib import Path

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion, embeddings, integrations
from fastrepulse.integrations.comfyui.hooks import Hooks
from fastrepulse.methods.diagnostics import mean_distance
from fastrepulse.noise import initial_noise
from fastrepulse.schedule import NoiseSchedule
from helpers.comfyui_stand_in import (
    Exploding,
    Flow,
    Guider,
    Patcher,
    euler,
    euler_cfg_pp,
    overwriting,
    repelling,
    run,
    shrinking,
    with_rounding,
)
from helpers.tolerances import SAME_COMPUTATION

FOLDER = Path(integrations.__file__).parent / "comfyui"
PUSH_ALONE = {"pause_guidance": False, "restart": False}


class Shipped:
    """The shipped model, and how often it was asked for a prediction."""

    def __init__(self, steps):
        self.model = fastrepulse.load_model()
        self.scheduler = self.model.scheduler("euler", steps)
        self.schedule = NoiseSchedule.of(self.scheduler)
        self.text = self.model.encode_prompts(["a potted plant", ""]).tokens
        self.asked = {True: [], False: []}

    def __call__(self, x, sigma, given):
        step = int((self.scheduler.sigmas - sigma).abs().argmin())
        self.asked[given].append(step)
        text = self.text[[0 if given else 1]].expand(len(x), -1, -1)
        time = self.scheduler.timesteps[step]
        output = self.model.unet(x / (1 + sigma**2) ** 0.5, time, encoder_hidden_states=text).sample
        return self.schedule.denoised(x, output, step)


def drawn(shipped, patcher, cfg, count=3):
    sigmas = shipped.scheduler.sigmas
    noise = initial_noise(0, count, (4, 16, 16)) * (shipped.scheduler.init_noise_sigma / sigmas[0])
    return Guider(patcher, shipped, Exploding(), cfg).sample(euler, noise, sigmas)


def close(one, other, times=1):
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(one, other, rtol=rtol, atol=times * atol)


@pytest.mark.parametrize("steps", [6, 12])
def test_it_draws_what_sample_draws_at_the_default(node, steps):
    shipped = Shipped(steps)
    ours = fastrepulse.sample(
        "a potted plant",
        3,
        scheduler="euler",
        num_inference_steps=steps,
        guidance_scale=5.0,
        seed=0,
        progress=False,
        compile=False,
    )
    close(drawn(shipped, repelling(node), 5.0), ours.latents, 10)
    # The steps of the pause leave the negative out, and the restart takes some steps twice
    assert len(shipped.asked[False]) < steps <= len(shipped.asked[True])
    assert len(shipped.asked[True]) > steps or steps == 6


def test_the_push_alone_draws_what_sample_draws(node):
    ours = fastrepulse.sample(
        "a potted plant",
        3,
        repulsion=Repulsion("thirds", 0.8, window=(10_000.0, 2.0), pause=None, restart=None),
        scheduler="euler",
        num_inference_steps=6,
        guidance_scale=1.0,
        seed=0,
        progress=False,
        compile=False,
    )
    patcher = repelling(node, 2.0, window=(10_000.0, 2.0), **PUSH_ALONE)
    close(drawn(Shipped(6), patcher, 1.0), ours.latents, 10)


def test_strength_zero_adds_nothing_and_strength_moves_apart(node):
    model = Patcher()
    (nothing,) = node.patch(model, 0.0, "thirds", 0, 0, 0)
    assert nothing is not model and not nothing.functions and not nothing.wrappers
    levels = [14.0, 8.0, 6.0, 4.5, 2.0, 0.0]
    for embedding in ("thirds", "channel_mean"):
        embed = embeddings.build(embedding)
        apart = mean_distance(embed(run(repelling(node, 1.0, embedding), levels, cfg=3.0)))
        assert apart > 1.02 * mean_distance(embed(run(model, levels, cfg=3.0)))
    assert not model.functions and not model.wrappers


@pytest.mark.parametrize("sigma", [1.0, 0.9, 0.5])
def test_flow_models_are_corrected_at_their_noise_level(node, sigma):
    """The prediction of one step; its length is given in units of the clean latents."""
    x0, x = (0.3 * initial_noise(seed, 5, (16, 8, 8)) for seed in (0, 1))
    patcher = repelling(node, 2.0, "pooled", (10_000.0, 0.1), **PUSH_ALONE)
    seen = []

    def one_step(model, noisy, sigmas, extra_args, callback):
        seen.append(model(x, sigmas[0], **extra_args))
        return noisy

    run(patcher, [sigma, 0.4 * sigma, 0.0], one_step, Flow(), x.shape, model=lambda *_: x0)
    (corrected,) = seen
    level, after = (s / max(1 - s, 2**-12) for s in (sigma, 0.4 * sigma))
    expected = integrations.corrected_denoised(
        x0,
        x / max(1 - sigma, 2**-12),
        level,
        Repulsion("pooled", 0.8, window=(10_000.0, 0.1)),
        next_sigma=after,
    )
    torch.testing.assert_close(corrected, expected, rtol=1e-3, atol=1e-4 * level)
    assert not torch.equal(corrected, x0)


@pytest.mark.parametrize("pause", [False, True])
def test_cfg_plus_plus_takes_the_push_as_euler_does(node, pause):
    """Where guidance does nothing, CFG++ is Euler's method."""
    patcher = repelling(node, 3.0, restart=False, pause_guidance=pause)
    levels = [14.0, 8.0, 6.0, 4.5, 2.0, 0.0]

    def unguided(x, sigma, given):
        return shrinking(x, sigma, True)

    alone = run(Patcher(), levels, euler_cfg_pp, model=unguided)
    close(alone, run(Patcher(), levels, model=unguided))
    pushed = run(patcher, levels, euler_cfg_pp, model=unguided)
    close(pushed, run(patcher, levels, model=unguided, cfg=7.0))
    assert (pushed - alone).abs().max() > 0.1


def test_cfg_plus_plus_pauses_as_euler_does(node):
    """The first step has guidance, all others are in the pause."""
    patcher = repelling(node, restart=False)
    levels = [8.0, 7.0, 6.0, 4.5]

    def guided_at_first(x, sigma, given):
        return shrinking(x, sigma, given or sigma == 8)

    paused = run(patcher, levels, euler_cfg_pp, model=guided_at_first)
    close(paused, run(patcher, levels, model=guided_at_first, cfg=7.0))


@pytest.mark.parametrize("function", [with_rounding, overwriting])
def test_samplers_that_change_noise_levels_take_the_same_push(node, function):
    levels = [14.0, 7.0, 2.0, 1.0, 0.5, 0.0]
    patcher = repelling(node, 10.0, window=(10_000.0, 0.1))
    close(run(patcher, levels, function, cfg=3.0), run(patcher, levels, cfg=3.0))


def test_the_schedule_of_a_run_is_not_overwritten(node):
    sigmas = torch.tensor([14.0, 7.0, 2.0, 1.0, 0.5, 0.0])
    guider = Guider(repelling(node), shrinking, Exploding())
    guider.sample(overwriting, initial_noise(0, 3, (4, 16, 16)), sigmas)
    assert sigmas[-1] == 0


def test_steps_are_counted_upwards_between_noise_levels_too(node):
    steps = []

    class Recording(embeddings.Embedding):
        name = "recording"

        def prepare(self, seed, step, sigma):
            steps.append(step)

        def __call__(self, latents):
            return latents.flatten(1)

    patcher = Patcher()
    repulsion = Repulsion(Recording(), 0.4, window=(100.0, 0.1), restart=None, pause=None)
    Hooks(repulsion, 0, None).add_to(patcher)
    run(patcher, [14.0, 7.0, 2.0, 0.0], halfway)
    assert steps == [0, 0, 1, 1, 2, 2]


def test_the_first_step_waits_unless_an_image_is_there(node):
    """A schedule that starts inside the window: from noise the subject comes first."""
    image = 0.5 * initial_noise(3, 4, (4, 16, 16))
    patcher, levels = repelling(node, restart=False), [8.0, 6.0]
    assert torch.equal(run(patcher, levels, cfg=3.0), run(Patcher(), levels, cfg=3.0))
    from_image = run(patcher, levels, cfg=3.0, latent_image=image)
    assert not torch.equal(from_image, run(Patcher(), levels, cfg=3.0, latent_image=image))


def test_the_restart_keeps_to_the_image_and_counts_all_steps(node):
    image, seen, seeds = 0.5 * initial_noise(3, 4, (4, 16, 16)), [], []
    levels = [14.0, 8.0, 6.0, 3.0, 2.0, 0.9, 0.0]

    def recording(model, x, sigmas, extra_args, callback):
        seeds.append(extra_args["seed"])
        return euler(model, x, sigmas, extra_args, callback)

    drawn = run(
        repelling(node),
        levels,
        recording,
        cfg=3.0,
        model=lambda x, sigma, given: image,
        latent_image=image,
        callback=lambda step, x0, x, total: seen.append((step, total)),
    )
    # 14 to 0.9, then from 3 to 0
    assert seen == [(step, 8) for step in range(8)]
    assert seeds == [0, 1]
    close(drawn, image)


def test_one_frame_is_an_image(node):
    levels, patcher = [14.0, 8.0, 6.0, 3.0, 2.0, 0.9, 0.0], repelling(node)
    images = run(patcher, levels, cfg=3.0, shape=(4, 16, 8, 8))
    frames = run(patcher, levels, cfg=3.0, shape=(4, 16, 1, 8, 8))
    close(frames.squeeze(2), images)
    assert not torch.equal(images, run(Patcher(), levels, cfg=3.0, shape=(4, 16, 8, 8)))


@pytest.mark.parametrize(
    "shape, named",
    [((2, 16, 5, 8, 8), "of a video"), ((2, 1, 5120), "of sound, or of several media together")],
)
def test_what_is_no_image_is_refused_at_the_start(node, shape, named):
    with pytest.raises(ValueError, match=rf"fastrepulse\): latents must be .* {named}"):
        run(repelling(node), [0.2, 0.1, 0.0], shape=shape)


def test_errors_while_sampling_name_the_node(node):
    def broken(x, sigma, given):
        return torch.full_like(x, torch.nan)

    with pytest.raises(FloatingPointError, match=r"^Repulsion \(fastrepulse\): .*not finite"):
        run(repelling(node), [14.0, 8.0, 6.0, 4.5, 0.0], model=broken)


def halfway(model, x, sigmas, extra_args, callback):
    """The midpoint method, which asks the model between two noise levels too."""
    for sigma, following in itertools.pairwise(sigmas):
        middle = (sigma + following) / 2
        between = x + (middle - sigma) * (x - model(x, sigma, **extra_args)) / sigma
        slope = (between - model(between, middle, **extra_args)) / middle
        x = x + (following - sigma) * slope
    return x


def one_by_one(patcher, function):
    guider, levels = Guider(patcher, shrinking, Exploding(), 3.0), [14.0, 8.0, 6.0, 3.0, 0.9, 0.0]
    noise = initial_noise(0, 4, (4, 16, 16)).split(1)
    return torch.cat([guider.sample(function, each, torch.tensor(levels)) for each in noise])


@pytest.mark.parametrize("function", [euler, halfway, overwriting])
def test_single_images_move_apart_through_the_bank(node, function):
    embed = embeddings.build("thirds")
    kept = one_by_one(repelling(node, 2.0, bank=1, **PUSH_ALONE), function)
    alone = one_by_one(Patcher(), function)
    assert mean_distance(embed(kept)) > 1.02 * mean_distance(embed(alone))


@pytest.mark.parametrize("function", [euler, halfway])
def test_every_image_goes_into_the_bank(node, page, function):
    kept = one_by_one(repelling(node, bank=1, unique_id="7"), function)
    changed = (kept != one_by_one(Patcher(), function)).flatten(1).any(dim=1)
    assert changed.all()
    counts = [re.search(r"the bank has (\d) earlier images", text)[1] for _, text in page]
    assert counts == ["0", "1", "2", "3"]


def test_each_size_schedule_and_prompt_has_its_own_bank(node, page):
    patcher, levels = repelling(node, bank=1, unique_id="7"), [14.0, 8.0, 6.0, 4.5, 0.0]
    guider = Guider(patcher, shrinking, Exploding(), 3.0)
    for words, side in ((3.0, 16), (3.0, 16), (2.0, 16), (2.0, 24)):
        text = torch.full((1, 77, 768), words, dtype=torch.float16)
        guider.original_conds = {"positive": [{"cross_attn": text}]}
        guider.sample(euler, initial_noise(0, 2, (4, side, side)), torch.tensor(levels))
    guider.sample(euler, initial_noise(0, 2, (4, 24, 24)), torch.tensor([14.0, 7.0, 6.0, 0.0]))
    counts = [re.search(r"the bank has (\d) earlier images", text)[1] for _, text in page]
    assert counts == ["0", "2", "0", "0", "0"]
