"""The rule from facts of a run to noise levels."""

import logging
import math

import pytest

from fastrepulse import Repulsion
from fastrepulse.checks import Window
from fastrepulse.methods.defaults import RunFacts, levels_for

SD_25 = (11.7, 9.3, 7.6, 6.2, 5.1, 4.3, 3.6, 3.1, 2.6, 2.3, 2.0, 1.7, 1.5, 1.3, 1.2, 1.0, 0.9, 0.5)
FEW = {
    "SDXL-Lightning": (14.6, 4.1, 1.6, 0.7),
    "Stable Diffusion 3.5-Turbo": (4096.0, 9.0, 3.0, 1.0),
    "FLUX.1-schnell": (4096.0, 3.0, 1.0, 0.33),
    "FLUX.2-klein": (4096.0, 29.7, 9.9, 3.3),
    "Z-Image-Turbo": (4096.0, 21.0, 9.0, 5.0, 3.0, 1.8, 1.0, 0.43),
    "one step": (14.6,),
}


def test_the_levels_at_16x16_latents():
    expected = ((9.0, 4.0), (9.0, 0.3), (3.0, 1.0))
    assert levels_for(RunFacts(16, 16, SD_25, True)) == expected
    assert levels_for(RunFacts(16, 16, None, True)) == expected


@pytest.mark.parametrize(("height", "width", "scale"), [(8, 8, 0.5), (32, 32, 2), (64, 16, 2)])
def test_levels_are_in_proportion_to_the_side(height, width, scale):
    levels = levels_for(RunFacts(height, width, SD_25, True))
    for ours, at_16 in zip(levels, levels_for(RunFacts(16, 16, SD_25, True)), strict=True):
        assert ours == pytest.approx((scale * at_16.high, scale * at_16.low))


@pytest.mark.parametrize("side", [64, 96, 128])
def test_a_schedule_that_starts_below_the_window_is_pushed_from_its_first_step_on(side):
    repulsion = Repulsion().for_run(RunFacts(side, side, SD_25, True))
    assert [sigma for sigma in SD_25 if repulsion.active_at(sigma)] == list(SD_25[:6])
    assert repulsion.restart_window is None
    # Guidance goes on in the interval in which large models need it (arXiv:2404.07724)
    assert all(repulsion.uses_guidance_at(sigma, False) for sigma in (1.1, 0.5))
    assert repulsion.uses_guidance_at(SD_25[0], True)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("side", [16, 64, 128])
def test_of_few_steps_without_guidance_the_first_two_are_pushed(name, side):
    sigmas = FEW[name]
    repulsion = Repulsion().for_run(RunFacts(side, side, sigmas, False))
    assert [repulsion.active_at(s) for s in sigmas] == [i < 2 for i in range(len(sigmas))]
    assert repulsion.pause is None and repulsion.restart is None
    assert repulsion.strength == 0.25 * Repulsion().strength
    first_pushed = not repulsion.levels.skips_first_step(sigmas[1] if len(sigmas) > 1 else 0.0)
    assert first_pushed


def test_levels_that_are_given_stay():
    given = Repulsion(strength=0.3, window=(5.0, 2.0), pause=None, restart=(2.0, 1.0))
    resolved = given.for_run(RunFacts(64, 64, FEW["SDXL-Lightning"], False))
    assert resolved == given and resolved.window == Window(5.0, 2.0)


def test_a_window_without_a_step_is_named_with_the_noise_levels(caplog):
    run = RunFacts(16, 16, FEW["FLUX.1-schnell"], False)
    with caplog.at_level(logging.WARNING, "fastrepulse"):
        Repulsion(window=(9.0, 4.0)).for_run(run)
        Repulsion(window=(math.inf, 4.0)).for_run(run)
        Repulsion(strength=0.0, window=(9.0, 4.0)).for_run(run)
    (record,) = caplog.records
    assert "no step lies in the window (9.0, 4.0)" in record.getMessage()
    assert "4.1e+03, 3, 1, 0.33" in record.getMessage()
