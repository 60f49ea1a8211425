"""The algorithm on one page: `sample` computes the same, and particles spread over modes."""

import math
import re
import runpy

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion, embeddings, naive
from fastrepulse.kernels.reference import median_sq_distance_reference, rbf_repulsion_reference
from fastrepulse.methods.defaults import RunFacts, levels_for
from fastrepulse.noise import particle_noise


def denoiser(model, scheduler, prompt, guidance_scale):
    """The clean prediction of the shipped v-prediction model, spelt out."""
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    text, empty = (model.encode_prompts([words]).tokens for words in (prompt, ""))

    def denoise(z, sigma, guided):
        timestep = scheduler.timesteps[sigmas.index(sigma)]
        scaled = z / (1 + sigma**2) ** 0.5

        def v(words):
            return model.unet(scaled, timestep, words.expand(len(z), -1, -1)).sample

        output = v(text)
        if guided and guidance_scale > 1:
            without = v(empty)
            output = without + guidance_scale * (output - without)
        return z / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * output

    return denoise, sigmas


def both(count, steps, guidance_scale, name=None, **settings):
    """Latents of `sample` and of `naive.sample`, by default with every default untouched."""
    model = fastrepulse.load_model()
    scheduler = model.scheduler("euler", steps)
    denoise, sigmas = denoiser(model, scheduler, "a monster", guidance_scale)
    shape = model.latent_shape(None, None)
    noise = torch.randn(count, *shape, generator=torch.manual_seed(0))
    fresh = particle_noise(3, range(count), shape, "restart")
    embed = embeddings.build(name or "thirds")
    run = RunFacts(*shape[1:], tuple(sigmas[:-1]), guidance_scale > 1)
    strength = embeddings.build(name or "thirds").strength * (0.25 if run.has_few_steps else 1)
    levels = {"strength": strength} | levels_for(run)._asdict() | settings
    with torch.no_grad():
        z = noise * float(scheduler.init_noise_sigma)
        expected = naive.sample(denoise, z, sigmas, embed, fresh, **levels)
    how = {"repulsion": Repulsion(name, **settings)} if name else {}
    result = fastrepulse.sample(
        "a monster",
        count,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        latents=noise,
        seed=3,
        progress=False,
        **how,
    )
    return result.latents, expected


@pytest.mark.parametrize(
    ("steps", "guidance_scale"), [(4, 1.0), (8, 1.0), (8, 5.0), (25, 1.0), (25, 5.0)]
)
def test_sample_at_its_default_is_the_page(steps, guidance_scale):
    ours, expected = both(4, steps, guidance_scale)
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("pooled", {"strength": 0.2, "window": (12.0, 3.0)}, id="pooled"),
        pytest.param("thirds", {"strength": -0.5}, id="attracts"),
        pytest.param("thirds", {"strength": 9.0}, id="bounded"),
        pytest.param("thirds", {"strength": -9.0}, id="attracts, bounded"),
        pytest.param("channel_mean", {"strength": 0.4, "pause": (6.0, 1.0)}, id="pause"),
        pytest.param("thirds", {"strength": 0.4, "restart": (4.0, 0.5)}, id="restart"),
    ],
)
def test_sample_with_other_settings_is_the_page(name, settings):
    ours, expected = both(2, 8, 5.0, name, **settings)
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=2e-3)


def test_the_example_runs(capsys):
    runpy.run_path(naive.__file__, run_name="__main__")
    few, many = re.findall(r"reach (\d) of 8", capsys.readouterr().out)
    assert int(many) > int(few)


@pytest.mark.parametrize(("n", "d"), [(2, 1), (7, 3), (40, 64)])
def test_the_force_is_that_of_the_reference(n, d):
    phi = torch.randn(n, d, dtype=torch.float64, generator=torch.manual_seed(n))
    rank = (n * (n - 1) // 2 - 1) // 2
    h = median_sq_distance_reference(phi, rank) / math.log(n)
    torch.testing.assert_close(naive.repulsive_force(phi), rbf_repulsion_reference(phi, h)[0])


def mixture(z, sigma, modes, weights):
    """The posterior mean of the clean point under a mixture of narrow Gaussians."""
    variance = 0.05**2 + sigma**2
    logits = weights.log() - torch.cdist(z, modes).square() / (2 * variance)
    return ((logits.softmax(dim=1) @ modes) * sigma**2 + 0.05**2 * z) / variance


def test_particles_spread_over_the_modes_of_a_mixture():
    angles = torch.arange(8) * (2 * math.pi / 8)
    modes = 3 * torch.stack([angles.cos(), angles.sin()], dim=1).double()
    weights = torch.tensor([0.93, *[0.01] * 7], dtype=torch.float64)
    sigmas = [*torch.logspace(1, -1.5, 30).tolist(), 0.0]

    def reached(strength):
        noise = torch.randn(24, 2, generator=torch.manual_seed(0), dtype=torch.float64)

        def denoise(z, sigma, guided):
            return mixture(z, sigma, modes, weights)

        levels = {"window": (9.5, 1.5), "restart": (1.0, 0.3)}
        z, fresh = sigmas[0] * noise, noise.flip(0)
        z = naive.sample(denoise, z, sigmas, lambda x: x, fresh, strength, **levels)
        distance, nearest = torch.cdist(z, modes).min(dim=1)
        assert distance.max() < 0.5
        return len(nearest.unique())

    assert reached(0.0) <= 3
    assert reached(0.8) >= 6
