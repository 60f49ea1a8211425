import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from fastrepulse.schedule import PREDICTION_TYPES, NoiseSchedule

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


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
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


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
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


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_perfect_model_one_step_lands_on_the_next_noise_level(kind, prediction_type):
    scheduler, schedule = build(kind, prediction_type)
    scheduler.register_to_config(clip_sample=False)
    x0, noise = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    timestep = scheduler.timesteps[0]
    held = scheduler.add_noise(x0, noise, timestep.expand(3))
    scheduler.scale_model_input(held, timestep)
    output = predict(prediction_type, x0, noise, schedule.sigmas[0])
    after = scheduler.step(output, timestep, held).prev_sample
    expected = x0 + schedule.sigmas[1] * noise
    torch.testing.assert_close(schedule.noisy(after, 1), expected, rtol=1e-3, atol=1e-3)


def test_an_unknown_prediction_type_is_refused():
    scheduler = EulerDiscreteScheduler(prediction_type="epsilon")
    scheduler.register_to_config(prediction_type="flow")
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="'flow'"):
        NoiseSchedule.of(scheduler)
