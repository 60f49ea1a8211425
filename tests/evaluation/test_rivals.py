"""The guidance scale, the initial noise and the random push as rivals of the repulsion."""

import pytest
import torch

pytest.importorskip("matplotlib")

import fastrepulse
from fastrepulse.evaluation.guidance_front import over_guidance
from fastrepulse.evaluation.initial_noise import CoupledNoise, PinkNoise
from fastrepulse.evaluation.runs import Protocol, sample_setting
from fastrepulse.evaluation.settings import COUPLED, DEFAULT, PARTS
from fastrepulse.methods import RandomPush


class FakeRow:
    """The figures of a row that the comparison reads."""

    def __init__(self, pairs, off_data, accuracy):
        def mean(value):
            return type("Mean", (), {"mean": value})

        self.pairs, self.off_data, self.accuracy = pairs, mean(off_data), mean(accuracy)


FRONT = [
    FakeRow([6.0, 4.0], off_data=2.0, accuracy=0.9),
    FakeRow([4.0, 2.0], off_data=1.0, accuracy=1.0),
    FakeRow([2.0, 2.0], off_data=1.5, accuracy=1.0),
]


@pytest.mark.parametrize(
    ("off_data", "accuracy", "expected"),
    [
        pytest.param(1.0, 1.0, 3.0, id="one-scale"),
        # At 1.25 off data a quarter of the first scale would give 3.5, but its accuracy is too low
        pytest.param(1.25, 1.0, 2.8, id="limited-by-accuracy"),
        pytest.param(1.25, 0.9, 2.5, id="limited-by-cleanliness"),
        pytest.param(2.5, 0.9, 1.0, id="the-most-different-scale"),
        pytest.param(0.9, 1.0, None, id="cleaner-than-all"),
    ],
)
def test_a_method_is_compared_with_the_best_scale_as_clean_and_accurate(
    off_data, accuracy, expected
):
    difference = over_guidance(FakeRow([6.0, 6.0], off_data, accuracy), FRONT)
    assert (difference and difference.mean) == (expected and pytest.approx(expected))


def test_coupled_noise_is_gaussian_and_correlates_as_negatively_as_it_can():
    noise = torch.randn(5, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    coupled = CoupledNoise()(noise).flatten(1)
    covariance = coupled @ coupled.T / coupled.shape[1]
    expected = torch.full((5, 5), -1 / 4).fill_diagonal_(1)
    torch.testing.assert_close(covariance, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(16, 16), (9, 16)])
def test_the_spectrum_of_pink_noise_falls_as_a_power(exponent, size):
    noise = torch.randn(2000, 1, *size, generator=torch.Generator().manual_seed(0))
    pink = PinkNoise(exponent)(noise)
    assert pink.var().item() == pytest.approx(1, abs=0.02)
    power = torch.fft.fft2(pink).abs().square().mean(dim=(0, 1))
    assert (power[0, 8] / power[0, 1]).item() == pytest.approx(8 ** (-2 * exponent), rel=0.15)


def test_the_random_push_is_as_long_as_the_repulsion_and_knows_no_other_particle():
    how = {"num_inference_steps": 2, "seed": 1, "progress": False}

    def draw(kind, count):
        repulsion = None if kind is None else kind(window=(20.0, 0.0), pause=None, restart=None)
        return fastrepulse.sample("a planet", count, repulsion=repulsion, **how).latents

    independent = draw(None, 3)
    random, repelled = (draw(kind, 3) - independent for kind in (RandomPush, fastrepulse.Repulsion))
    assert random.norm().item() == pytest.approx(repelled.norm().item(), rel=0.1)
    cosines = torch.cosine_similarity(random.flatten(1), repelled.flatten(1))
    assert cosines.abs().max() < 0.7


def test_settings_may_change_the_initial_noise():
    model = fastrepulse.load_model()
    protocol = Protocol(num_particles=2, num_inference_steps=1)
    sampled = [
        sample_setting(setting, 0, protocol, model, compile=False).latents
        for setting in (COUPLED, DEFAULT)
    ]
    assert not torch.equal(*sampled)
    assert all(part.arguments != DEFAULT.arguments for part in PARTS)
