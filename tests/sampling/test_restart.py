"""A restart raises the noise level once after the push and repeats some steps."""

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion


def draw(n, **arguments):
    how = {"seed": 0, "progress": False, "height": 32, "width": 32}
    return fastrepulse.sample("a potted plant", n, **{**how, **arguments})


@pytest.mark.parametrize(
    "scheduler", ["euler", "dpm++", pytest.param("ddim", marks=pytest.mark.slow)]
)
def test_a_restart_repeats_some_steps_and_changes_the_images_little(scheduler):
    def sampled(restart):
        how = {"num_inference_steps": 20, "scheduler": scheduler, "height": 64, "width": 64}
        return draw(2, repulsion=Repulsion(restart=restart), **how)

    straight, again = sampled(None), sampled((3.0, 1.0))
    sigmas = [step.sigma for step in straight.diagnostics]
    below, back = (
        next(i for i, sigma in enumerate(sigmas) if sigma <= level) for level in (1.0, 3.0)
    )
    assert 0 < back < below
    taken = [step.sigma for step in again.diagnostics]
    assert taken == sigmas[:below] + sigmas[back:]
    apart = (again.latents - straight.latents).flatten(1).norm(dim=1)
    assert (apart > 0).all()
    assert apart.max() < torch.pdist(straight.latents.flatten(1)).min()
    assert torch.equal(sampled((3.0, 1.0)).latents, again.latents)


@pytest.mark.parametrize(
    "repulsion",
    [
        Repulsion(strength=0.0),
        Repulsion(restart=None),
        Repulsion(restart=(0.01, 0.001)),
        Repulsion(window=(9.0, 2.0), restart=(3.0, 1.0)),
    ],
    ids=["no-strength", "none", "below-the-last-level", "window-not-over"],
)
def test_some_settings_have_no_restart(repulsion):
    assert len(draw(2, repulsion=repulsion, num_inference_steps=12).diagnostics) == 12


def test_the_noise_of_a_restart_does_not_depend_on_the_micro_batch_size():
    whole, parts = (
        draw(5, num_inference_steps=12, micro_batch_size=size).latents for size in (5, 2)
    )
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-3)
