"""After the push particles go back up once, and some steps are taken twice."""

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion


def draw(n, **arguments):
    return fastrepulse.sample("a potted plant", n, seed=0, progress=False, **arguments)


@pytest.mark.parametrize("scheduler", ["euler", "ddim", "dpm++"])
def test_a_restart_takes_some_steps_twice_and_keeps_what_the_pictures_became(scheduler):
    def sampled(restart):
        how = {"num_inference_steps": 20, "scheduler": scheduler}
        return draw(3, repulsion=Repulsion(restart=restart), **how)

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
        Repulsion(window=(9.0, 2.0)),
    ],
    ids=["no-strength", "none", "below-the-last-level", "window-not-over"],
)
def test_there_is_no_restart(repulsion):
    assert len(draw(6, repulsion=repulsion, num_inference_steps=12).diagnostics) == 12


def test_a_restart_gives_a_particle_noise_of_its_own_whatever_the_micro_batch():
    whole, parts = (
        draw(5, num_inference_steps=12, micro_batch_size=size).latents for size in (5, 2)
    )
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-3)
