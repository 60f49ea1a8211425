import math
from functools import cache

import pytest
import torch

import fastrepulse
from fastrepulse.kernels import median_bandwidth
from fastrepulse.methods import (
    CADS,
    SPARKE,
    SPELL,
    SVGD,
    MeanScore,
    ParticleGuidance,
    TextNoise,
    VendiGuidance,
)
from fastrepulse.metrics import vendi_score_of_kernel
from helpers.drawn import particles_of
from helpers.tolerances import AGAINST_FLOAT64

SIGMA = 5.0


def draw(n=5, seed=0, side=4):
    return torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(seed))


def change_of(method, noisy, denoised=None, **state):
    push = method.push(particles_of(noisy, denoised, **{"sigma": SIGMA, **state}))
    return torch.cat(list(push.changes))


def kernel_of(x, h):
    return torch.exp(-(x[:, None] - x[None]).square().sum(dim=-1) / h)


def particle_guidance(x, h):
    return -0.5 * kernel_of(x, h).sum()


def order_two_entropy(x, h):
    return -len(x) * kernel_of(x, h).square().mean().log()


def log_vendi(x, h):
    values = torch.linalg.eigvalsh(kernel_of(x, h) / len(x))
    return len(x) * torch.special.entr(values).sum()


POTENTIALS = [
    pytest.param(ParticleGuidance, particle_guidance, id="particle-guidance"),
    pytest.param(SPARKE, order_two_entropy, id="sparke"),
    pytest.param(VendiGuidance, log_vendi, id="vendi"),
]


@pytest.mark.parametrize("n", [2, 3, 17])
@pytest.mark.parametrize(("method", "potential"), POTENTIALS)
def test_the_change_is_the_gradient_of_the_potential(method, potential, n):
    latents = draw(n)
    h = median_bandwidth(latents.flatten(1)).item()
    leaf = latents.double().flatten(1).requires_grad_()
    (expected,) = torch.autograd.grad(potential(leaf, h), leaf)
    got = change_of(method(strength=1.0), latents).flatten(1).double()
    rtol, atol = AGAINST_FLOAT64[torch.float32]
    torch.testing.assert_close(got, expected, rtol=10 * rtol, atol=atol)


def test_the_vendi_potential_is_the_score_that_is_reported():
    x = draw(6).flatten(1).double()
    kernel = kernel_of(x, 20.0)
    assert log_vendi(x, 20.0).item() / 6 == pytest.approx(math.log(vendi_score_of_kernel(kernel)))


@pytest.mark.parametrize("method", [ParticleGuidance, SPARKE, VendiGuidance, SVGD])
def test_features_of_the_predicted_picture_are_pulled_back_without_a_slope(method):
    noisy, denoised = draw(seed=1), draw(seed=2)
    settings = {"embedding": "channel_mean", "strength": 1.0}
    on_denoised = change_of(method(on="denoised", **settings), noisy, denoised)
    if method is SVGD:
        return
    alone = change_of(method(on="noisy", **settings), denoised)
    torch.testing.assert_close(on_denoised, alone)


def test_svgd_by_hand_for_two_particles():
    noisy = torch.zeros(2, 1, 1, 1)
    noisy[1] = 2.0
    denoised = torch.tensor([10.0, -10.0]).view(2, 1, 1, 1)
    h = 4 / math.log(2)  # exp(-4 / h) is 1 / 2
    scores = [10 / SIGMA**2, -12 / SIGMA**2]
    averaged = [(scores[0] + scores[1] / 2) / 1.5, (scores[1] + scores[0] / 2) / 1.5]
    repelled = 2 / h * 0.5 * 2 / 1.5
    change = change_of(SVGD(strength=3.0), noisy, denoised).flatten()
    assert change[0].item() == pytest.approx(averaged[0] - scores[0] - 3 * repelled, rel=1e-5)
    assert change[1].item() == pytest.approx(averaged[1] - scores[1] + 3 * repelled, rel=1e-5)


def test_spell_by_hand():
    x = torch.tensor([0.0, 3.0, 100.0]).view(3, 1, 1, 1)
    change = change_of(SPELL(radius=4.0, overcompensation=1.0), x) * SIGMA**2
    # Of two that are 3 apart in balls of radius 4, each goes 1 out; the third is far from both
    torch.testing.assert_close(change.flatten(), torch.tensor([-1.0, 1.0, 0.0]))
    protected = torch.tensor([101.0]).view(1, 1, 1, 1)
    guarded = change_of(SPELL(4.0, 2.0, protected), x) * SIGMA**2
    torch.testing.assert_close(guarded.flatten(), torch.tensor([-2.0, 2.0, -6.0]))


def test_spell_counts_its_radius_by_the_number_of_latents():
    x = draw(3)
    distance = torch.pdist(x.flatten(1)).min().item() / math.sqrt(64)
    assert not change_of(SPELL(radius=0.999 * distance), x).any()
    assert change_of(SPELL(radius=1.001 * distance), x).any()


def test_mean_score_by_hand():
    noisy, denoised = torch.zeros(3, 1, 1, 1), torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1, 1)
    change = change_of(MeanScore(strength=0.5), noisy, denoised).flatten() * SIGMA**2
    torch.testing.assert_close(change, torch.tensor([-2.0, -1.75, -0.75]))


@pytest.mark.parametrize(
    ("time", "gamma"), [(1.0, 0.0), (0.9, 0.0), (0.75, 0.5), (0.6, 1.0), (0.0, 1.0)]
)
def test_cads_gamma_by_hand(time, gamma):
    assert CADS().gamma(time) == pytest.approx(gamma)


def test_a_single_particle_is_changed_where_the_method_needs_no_others():
    def draw_one(method):
        how = {"num_inference_steps": 3, "seed": 0, "progress": False}
        return fastrepulse.sample("a planet", 1, repulsion=method, **how).latents

    alone = draw_one(None)
    protected = torch.zeros(1, *alone.shape[1:])
    for method in (CADS(), SPELL(radius=3.0, protected=protected)):
        assert not torch.allclose(draw_one(method), alone)
    for method in (SPELL(), ParticleGuidance(), SVGD()):
        assert torch.equal(draw_one(method), alone)


def test_cads_without_noise_is_finite_where_nothing_is_left_of_the_text():
    text = torch.randn(2, 5, 8)
    perturbed = CADS(noise_scale=0.0).perturb_text(text, [0, 1], 1.0, 0, 0)
    torch.testing.assert_close(perturbed, text.mean((1, 2), keepdim=True).expand_as(text))


def test_cads_keeps_the_texts_scale_and_draws_for_each_particle_alone():
    text = 3 + 2 * draw(4).view(4, 8, 8)[:1].expand(4, -1, -1)
    method = CADS(noise_scale=0.5)
    noisy = method.perturb_text(text, [0, 1, 2, 3], 0.75, 3, seed=1)
    for reduce in (torch.mean, torch.std):
        torch.testing.assert_close(reduce(noisy, (1, 2)), reduce(text, (1, 2)))
    assert torch.pdist(noisy.flatten(1)).min() > 0
    torch.testing.assert_close(method.perturb_text(text[2:], [2, 3], 0.75, 3, seed=1), noisy[2:])
    assert not torch.allclose(method.perturb_text(text, [0, 1, 2, 3], 0.75, 4, seed=1), noisy)
    assert not torch.allclose(method.perturb_text(text, [0, 1, 2, 3], 0.75, 3, seed=2), noisy)
    assert torch.equal(method.perturb_text(text, [0, 1, 2, 3], 0.5, 3, seed=1), text)
    nothing_rescaled = CADS(noise_scale=0.5, rescale=0.0).perturb_text(
        text, [0, 1, 2, 3], 0.95, 0, seed=1
    )
    assert nothing_rescaled.mean().abs() < 0.1  # nothing but noise


def test_text_noise_is_a_particles_own_the_same_at_every_step_and_gone_in_the_end():
    text = 3 + 2 * draw(4).view(4, 8, 8)[:1].expand(4, -1, -1)
    method = TextNoise(strength=0.5, share=0.25)
    noisy = method.perturb_text(text, [0, 1, 2, 3], 0.9, 1, seed=1)
    added = (noisy - text) / text.std((1, 2), keepdim=True)
    assert added.abs().max() <= 0.5
    assert (added != 0).float().mean().item() == pytest.approx(0.25, abs=0.1)
    assert torch.pdist(added.flatten(1)).min() > 0
    later = method.perturb_text(text[2:], [2, 3], 0.8, 5, seed=1)
    torch.testing.assert_close(later, noisy[2:])
    assert torch.equal(method.perturb_text(text, [0, 1, 2, 3], 0.79, 6, seed=1), text)
    assert torch.equal(TextNoise(0.0).perturb_text(text, [0, 1, 2, 3], 0.9, 1, seed=1), text)


@pytest.mark.parametrize(
    "method", [ParticleGuidance(), SPARKE(), VendiGuidance(), SVGD(), SPELL(), MeanScore()]
)
def test_prompts_act_on_their_own(method):
    latents, x0 = draw(6), draw(6, seed=1) / 10
    both = change_of(method, latents, x0, num_particles=3)
    torch.testing.assert_close(both[3:], change_of(method, latents[3:], x0[3:]))


@cache
def spread(method):
    how = {"num_inference_steps": 10, "seed": 0, "progress": False, "height": 32, "width": 32}
    result = fastrepulse.sample("a planet", 4, repulsion=method, **how)
    return torch.pdist(result.latents.flatten(1)).mean().item(), result


@pytest.mark.parametrize(
    "method",
    [
        ParticleGuidance(100.0),
        SPARKE(100.0),
        VendiGuidance(100.0),
        SVGD(3.0),
        SPELL(1.5),
        CADS(1.0),
        TextNoise(6.0),
    ],
    ids=lambda method: type(method).__name__,
)
def test_pictures_of_the_shipped_model_differ_more(method):
    moved, result = spread(method)
    alone, _ = spread(None)
    assert moved > 1.01 * alone
    assert result.settings["repulsion"]["method"] == type(method).__name__


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ParticleGuidance(math.nan), "strength must be a finite number, got nan"),
        (lambda: ParticleGuidance(embedding="colour"), "'colour'"),
        (lambda: SVGD(on="clean"), "'clean'"),
        (lambda: SPARKE(window=(1.0, 2.0)), "window"),
        (lambda: SPELL(radius=0.0), "radius must be a positive number, got 0.0"),
        (lambda: SPELL(protected=torch.zeros(3)), r"got \(3,\)"),
        (lambda: CADS(noise_scale=-1.0), "noise_scale"),
        (lambda: CADS(start=0.9, end=0.5), "got 0.9 and 0.5"),
        (lambda: CADS(rescale=2.0), "rescale must be in"),
        (lambda: TextNoise(-1.0), "strength must be at least 0, got -1.0"),
        (lambda: TextNoise(math.nan), "strength must be a finite number, got nan"),
        (lambda: TextNoise(share=1.5), "share must be in"),
        (lambda: TextNoise(until=1.0), "until must be a time in"),
        (lambda: MeanScore(math.inf), "inf"),
        (lambda: MeanScore(window=(1.0, 1.0)), "window"),
        (lambda: change_of(SPELL(protected=torch.zeros(1, 4, 8, 8)), draw()), "like the latents"),
    ],
)
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()
