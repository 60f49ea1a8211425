import math

import pytest
import torch

import fastrepulse
from fastrepulse import Correction, Repulsion, embeddings
from fastrepulse.methods.diagnostics import mean_distance
from fastrepulse.sampling.denoiser import Denoiser
from helpers.tolerances import SAME_COMPUTATION

STEPS = 6
RTOL, ATOL = SAME_COMPUTATION


def draw(n=3, prompt="a planet", **settings):
    how = {"num_inference_steps": STEPS, "seed": 0, "progress": False, "height": 32, "width": 32}
    settings = how | settings
    return fastrepulse.sample(prompt, n, **{"repulsion": None} | settings)


def ones(value):
    return torch.full((2, 1, 2, 2), float(value))


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        # sigma 4, next 3: eta = 4
        (Correction("score"), 10 + 4 * 1),
        (Correction("langevin"), 10 + 4 * 1 + 4 * 2 + math.sqrt(8) * 3),
        (Correction("random"), 10 + math.sqrt(8) * 3),
        (Correction("repulsive"), 10 + 4 * 2),
        (Correction("score", step_size=0.5), 10 + 8 * 1),
    ],
    ids=lambda value: value.kind if isinstance(value, Correction) else None,
)
def test_correction_steps_match_values_by_hand(correction, expected):
    noise = ones(3) if correction.uses_noise else None
    moved = correction.move(ones(10), ones(1), ones(2), noise, 4.0, 3.0)
    torch.testing.assert_close(moved, ones(expected))


def test_a_score_step_of_the_automatic_size_is_a_step_of_euler():
    """For a model with a constant clean prediction and a next noise level of sigma_next."""
    x0, z = ones(2), ones(10)
    score = (x0 - z) / 4.0**2
    moved = Correction("score").move(z, score, None, None, 4.0, 3.0)
    torch.testing.assert_close(moved, x0 + 3 / 4 * (z - x0))


@pytest.mark.parametrize("scheduler", ["euler", "ddim", "dpm++"])
def test_langevin_steps_change_the_images_and_keep_their_variance(scheduler):
    plain = draw(scheduler=scheduler).latents
    window = (math.inf, 2.0)
    corrected = draw(
        scheduler=scheduler, corrections=[Correction(steps=2, step_size=0.1, window=window)]
    ).latents
    assert (plain - corrected).abs().mean() > 0.1
    assert corrected.std().item() == pytest.approx(plain.std().item(), rel=0.3)


def test_corrections_depend_on_the_seed_and_not_on_other_particles():
    settings = {"corrections": [Correction(step_size=0.1)]}
    few, many = draw(2, **settings).latents, draw(4, micro_batch_size=3, **settings).latents
    torch.testing.assert_close(many[:2], few, rtol=RTOL, atol=10 * ATOL)
    both = draw(2, ["a planet", "a potted plant"], **settings).latents
    torch.testing.assert_close(both[:2], few, rtol=RTOL, atol=10 * ATOL)
    other = draw(2, seed=1, **settings).latents
    assert not torch.allclose(other, few, atol=0.1)


def test_every_correction_step_calls_the_model_once(monkeypatch):
    calls = []
    ask = Denoiser.__call__
    monkeypatch.setattr(
        Denoiser, "__call__", lambda self, *given: calls.append(1) or ask(self, *given)
    )
    draw(corrections=[Correction(steps=3, window=(math.inf, 2.0)), Correction("random")])
    levels = [step.sigma for step in draw().diagnostics]
    del calls[-STEPS:]
    assert len(calls) == STEPS + 3 * sum(sigma >= 2.0 for sigma in levels) + STEPS


def test_repulsive_steps_move_particles_apart():
    def spread(corrections):
        repulsion = Repulsion("thirds", strength=0.05, window=(math.inf, 2.0))
        latents = draw(4, repulsion=repulsion, corrections=corrections).latents
        return mean_distance(embeddings.build("thirds")(latents))

    once = Correction("repulsive", steps=2, window=(math.inf, 2.0))
    assert spread([once]) > 1.01 * spread([])


@pytest.mark.parametrize("kind", ["score", "random", "langevin", "repulsive"])
def test_only_corrections_with_a_push_embed_the_particles(kind):
    calls = []

    def embed(latents):
        calls.append(len(latents))
        return latents.mean(dim=(2, 3))

    repulsion = Repulsion(embed, 0.0)
    draw(3, repulsion=repulsion, corrections=[Correction(kind, 2, 0.01)])
    steps = STEPS * (3 if kind in ("langevin", "repulsive") else 1)
    assert len(calls) == steps


def test_the_result_keeps_the_settings_of_its_corrections():
    result = draw(2, corrections=[Correction("random", 2, 0.1)])
    (kept,) = result.settings["corrections"]
    assert kept["kind"] == "random" and kept["steps"] == 2 and kept["step_size"] == 0.1


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: Correction("noise"), ValueError, "'noise'"),
        (lambda: Correction(steps=0), ValueError, "got 0"),
        (lambda: Correction(steps=1.5), TypeError, "got 1.5"),
        (lambda: Correction(step_size=0.0), ValueError, "got 0.0"),
        (lambda: Correction(window=(1.0, 2.0)), ValueError, "window"),
        (lambda: draw(corrections=["langevin"]), TypeError, "langevin"),
    ],
)
def test_bad_arguments_are_named(make, error, named):
    with pytest.raises(error, match=named):
        make()
