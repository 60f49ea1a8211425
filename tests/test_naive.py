"""The method on one page: the sampler computes the same, and it spreads particles over modes."""

import math

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion, embeddings, naive
from fastrepulse.kernels.reference import median_sq_distance_reference, rbf_repulsion_reference
from fastrepulse.noise import particle_noise

STEPS = 8


@pytest.mark.parametrize("name", ["pooled", "thirds", "channel_mean"])
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_sampler_computes_the_same(name, count, guidance_scale):
    model = fastrepulse.load_model()
    scheduler = model.scheduler("euler", STEPS)
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    text, empty = (model.encode_prompts([prompt]).tokens for prompt in ("a monster", ""))

    def denoise(z, sigma):
        timestep = scheduler.timesteps[sigmas.index(sigma)]
        scaled = z / (1 + sigma**2) ** 0.5

        def v(words):
            return model.unet(scaled, timestep, words.expand(len(z), -1, -1)).sample

        output = v(text)
        if guidance_scale > 1:
            without = v(empty)
            output = without + guidance_scale * (output - without)
        return z / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * output

    shape = model.latent_shape(None, None)
    noise = torch.randn(count, *shape, generator=torch.manual_seed(0))
    fresh = particle_noise(3, range(count), shape, "restart")
    z = noise * float(scheduler.init_noise_sigma)
    with torch.no_grad():
        embed, window, restart = embeddings.build(name), (math.inf, 4.0), (3.0, 1.0)
        expected = naive.sample(denoise, z, sigmas, embed, fresh, 0.4, window, restart)
    result = fastrepulse.sample(
        "a monster",
        count,
        repulsion=Repulsion(name, 0.4, window=window, pause=None, restart=restart),
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        latents=noise,
        seed=3,
        compile=False,
        progress=False,
    )
    torch.testing.assert_close(result.latents, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("n", "d"), [(2, 1), (7, 3), (40, 64)])
def test_force_and_bandwidth_are_those_of_the_reference(n, d):
    phi = torch.randn(n, d, dtype=torch.float64, generator=torch.manual_seed(n))
    rank = (n * (n - 1) // 2 - 1) // 2
    h = median_sq_distance_reference(phi, rank) / math.log(n)
    torch.testing.assert_close(naive.median_bandwidth(phi), h)
    torch.testing.assert_close(naive.repulsive_force(phi), rbf_repulsion_reference(phi, h)[0])


def mixture(z, sigma, modes, weights):
    """The clean point that is expected of a noisy one, under a mixture of narrow Gaussians."""
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

        def denoise(z, sigma):
            return mixture(z, sigma, modes, weights)

        high, low, z = (math.inf, 1.5), (1.0, 0.3), sigmas[0] * noise
        z = naive.sample(denoise, z, sigmas, lambda x: x, noise.flip(0), strength, high, low)
        distance, nearest = torch.cdist(z, modes).min(dim=1)
        assert distance.max() < 0.5
        return len(nearest.unique())

    assert reached(0.0) <= 3
    assert reached(0.8) >= 6
