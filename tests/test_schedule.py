import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from fastrepulse.schedule import (
    PREDICTION_TYPES,
    NoiseSchedule,
    check_scheduler,
    denoised,
    is_variance_exploding,
    noise_level,
    output_change,
    signal_at,
)

KINDS = [EulerDiscreteScheduler, DDIMScheduler, DPMSolverMultistepScheduler]


def build(kind, prediction_type, steps=7):
    scheduler = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )
    scheduler.set_timesteps(steps)
    return scheduler, NoiseSchedule.of(scheduler)


def predict(prediction_type, x0, noise, sigma):
    """What a perfect model would say of x0 + sigma * noise."""
    alpha = (1 + sigma**2) ** -0.5
    return {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * alpha * x0,
        "sample": x0,
    }[prediction_type]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES[:3])
@pytest.mark.parametrize("kind", KINDS)
def test_noisy_and_denoised_invert_the_scheduler_s_own_noise(kind, prediction_type):
    scheduler, schedule = build(kind, prediction_type)
    x0, noise = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    for step in range(6):
        sigma = schedule.sigmas[step]
        timestep = scheduler.timesteps[step : step + 1].expand(3)
        z = schedule.noisy(scheduler.add_noise(x0, noise, timestep), step)
        torch.testing.assert_close(z, x0 + sigma * noise, rtol=1e-4, atol=1e-4)
        output = predict(prediction_type, x0, noise, sigma)
        torch.testing.assert_close(
            schedule.denoised(x0 + sigma * noise, output, step), x0, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES[:3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_score_moves_the_prediction_by_sigma_squared(kind, prediction_type):
    _, schedule = build(kind, prediction_type)
    z, output, change = torch.randn(3, 2, 4, 4, 4, dtype=torch.float64)
    for step in range(6):
        before = schedule.denoised(z, output, step)
        after = schedule.denoised(z, schedule.add_to_score(output, change, step), step)
        sigma = schedule.sigmas[step]
        torch.testing.assert_close(after - before, sigma**2 * change, rtol=1e-6, atol=1e-9)
        score = schedule.score(z, after, step) - schedule.score(z, before, step)
        torch.testing.assert_close(score, change, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES[:3])
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_perfect_model_one_step_lands_on_the_next_noise_level(kind, prediction_type):
    scheduler, schedule = build(kind, prediction_type)
    scheduler.register_to_config(clip_sample=False)
    x0, noise = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    timestep = scheduler.timesteps[0]
    sample = scheduler.add_noise(x0, noise, timestep.expand(3))
    scheduler.scale_model_input(sample, timestep)
    output = predict(prediction_type, x0, noise, schedule.sigmas[0])
    after = scheduler.step(output, timestep, sample).prev_sample
    expected = x0 + schedule.sigmas[1] * noise
    torch.testing.assert_close(schedule.noisy(after, 1), expected, rtol=1e-3, atol=1e-3)


def test_an_unknown_prediction_type_is_refused():
    scheduler = EulerDiscreteScheduler(prediction_type="epsilon")
    scheduler.register_to_config(prediction_type="flow")
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="'flow'"):
        NoiseSchedule.of(scheduler)


WORKING = [
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
REFUSED = [
    "CMStochasticIterativeScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KarrasVeScheduler",
    "RePaintScheduler",
    "UnCLIPScheduler",
]


@pytest.mark.parametrize("name", REFUSED)
def test_schedulers_that_do_something_else_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        check_scheduler(getattr(diffusers, name)())


@pytest.mark.parametrize("timestep_spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", WORKING)
def test_what_a_scheduler_holds_is_what_it_makes_of_noise(name, timestep_spacing):
    kind = getattr(diffusers, name)
    spacing = {"timestep_spacing": timestep_spacing}
    scheduler = kind.from_config({**kind().config, **spacing})
    check_scheduler(scheduler)
    scheduler.set_timesteps(8)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for step in range(0, 6, 2):
        time = scheduler.timesteps[step : step + 1]
        if hasattr(scheduler, "scale_noise"):
            held = [
                scheduler.scale_noise(x, time, noise) for x, noise in ((one, zero), (zero, one))
            ]
        else:
            held = [scheduler.add_noise(x, noise, time) for x, noise in ((one, zero), (zero, one))]
        level = noise_level(scheduler, step)
        signal = signal_at(scheduler, level)
        signal_held, noise_held = (value.item() for value in held)
        assert (signal, signal * level) == pytest.approx((signal_held, noise_held), abs=2e-3), step


@pytest.mark.parametrize("timestep_spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sigmas", [[14.0, 3.0, 1.0], [1.0, 0.5, 0.2], [0.7, 0.1]])
def test_custom_noise_levels_do_not_change_what_kind_a_scheduler_is(sigmas, timestep_spacing):
    euler = EulerDiscreteScheduler(timestep_spacing=timestep_spacing)
    euler.set_timesteps(sigmas=sigmas)
    assert is_variance_exploding(euler)
    preserving = DPMSolverMultistepScheduler(
        timestep_spacing=timestep_spacing, use_karras_sigmas=True
    )
    preserving.set_timesteps(3)
    assert not is_variance_exploding(preserving)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.0, 4096.0])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_every_prediction_type_is_inverted_and_corrected(kind, sigma):
    x0, noise, change = torch.randn(3, 2, 4, 4, 4, dtype=torch.float64)
    z = x0 + sigma * noise
    norm = (1 + sigma**2) ** 0.5
    output = {
        "epsilon": noise,
        "v_prediction": (noise - sigma * x0) / norm,
        "sample": x0,
        "flow": noise - x0,
    }[kind]
    torch.testing.assert_close(denoised(z, output, sigma, kind), x0, rtol=1e-6, atol=1e-6)
    corrected = output + output_change(change, sigma, kind)
    expected = x0 + sigma**2 * change
    torch.testing.assert_close(denoised(z, corrected, sigma, kind), expected, rtol=1e-6, atol=1e-5)
