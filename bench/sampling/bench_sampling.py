"""Times `sample()` and diffusers' pipeline, and one step's repulsion in several implementations.

make bench
"""

import time

import pytest
import torch

import fastrepulse
from bench.common import environment
from bench.sampling.peers import (
    PUSHES,
    diffusers_pipeline,
    run_diffusers,
    stable_diffusion_2,
)
from fastrepulse import Repulsion, models, native
from fastrepulse.methods.base import Particles
from fastrepulse.noise import initial_noise

PROMPT = "a potted plant"
N, STEPS = 48, 15


def run_ours(model, n, steps, **arguments):
    return fastrepulse.sample(
        PROMPT, n, model=model, num_inference_steps=steps, seed=0, progress=False, **arguments
    ).images


def check_equal(pipeline, model, n, steps):
    """Checks that diffusers and we draw the same images without repulsion; returns the noise."""
    latents = initial_noise(0, n, model.latent_shape(None, None))
    theirs = run_diffusers(pipeline, PROMPT, latents, steps)
    ours = run_ours(model, n, steps, repulsion=None)
    for one, other in zip(ours, theirs, strict=True):
        pixels = [
            torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).int() for p in (one, other)
        ]
        assert (pixels[0] - pixels[1]).abs().max() <= 2
    return latents


@pytest.fixture(scope="module")
def shipped():
    model = models.load_model()
    pipeline = diffusers_pipeline(model)
    check_equal(pipeline, model, 2, 3)
    return model, pipeline


VARIANTS = {
    "diffusers": None,
    "fastrepulse, independent": {"repulsion": None, "compile": False},
    "fastrepulse, repelled": {"compile": False},
    "fastrepulse, independent, compiled": {"repulsion": None, "compile": True},
    "fastrepulse, repelled, compiled": {"compile": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sample(benchmark, shipped, variant):
    model, pipeline = shipped
    arguments = VARIANTS[variant]
    latents = initial_noise(0, N, (4, 16, 16))
    if arguments is None:
        call = lambda: run_diffusers(pipeline, PROMPT, latents, STEPS)  # noqa: E731
    else:
        call = lambda: run_ours(model, N, STEPS, **arguments)  # noqa: E731
        start = time.perf_counter()
        run_ours(model, N, 1, **arguments)
        benchmark.extra_info["first_step_seconds"] = time.perf_counter() - start
    benchmark.group = f"sample, shipped model, N={N}, {STEPS} steps ({native.cpu_capability()})"
    benchmark.extra_info |= {"op": "sample", "variant": variant, "images": N}
    benchmark.extra_info |= {"environment": environment()}
    benchmark.pedantic(call, rounds=3, warmup_rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["diffusers", "fastrepulse, repelled"])
def test_sample_full_size(benchmark, variant):
    model = stable_diffusion_2()
    latents = initial_noise(0, 2, (4, 64, 64))
    if variant == "diffusers":
        pipeline = diffusers_pipeline(model)
        check_equal(pipeline, model, 1, 1)
        del model
        call = lambda: run_diffusers(pipeline, PROMPT, latents, 2)  # noqa: E731
    else:
        call = lambda: run_ours(model, 2, 2, repulsion="thirds", compile=False)  # noqa: E731
    benchmark.group = "sample, Stable Diffusion 2's size, N=2, 2 steps"
    benchmark.extra_info |= {"op": "sample_full_size", "variant": variant, "images": 2}
    benchmark.pedantic(call, rounds=2, warmup_rounds=1)


@pytest.mark.parametrize("embedding", ["random_cnn", "thirds"])
@pytest.mark.parametrize(
    ("variant", "n"),
    [
        *(("thesis", 64), ("Particle Guidance", 64), ("fastrepulse", 64)),
        *(("Particle Guidance", 1024), ("fastrepulse", 1024)),
    ],
)
def test_push(benchmark, variant, n, embedding):
    latents = initial_noise(0, n, (4, 16, 16))
    repulsion = Repulsion(embedding, on="noisy")

    def ours():
        # One micro-batch, because the other implementations use one
        particles = Particles(
            latents, lambda part: latents[part], 5.0, 4.0, 0, False, n, 0, micro_batch_size=n
        )
        return torch.cat(list(repulsion.push(particles).changes))

    call = ours if variant == "fastrepulse" else lambda: PUSHES[variant](latents, embedding)
    direction = call().flatten(1)
    if variant != "fastrepulse":
        # The directions agree; the lengths differ
        cosine = torch.cosine_similarity(direction, ours().flatten(1))
        assert cosine.min() > 0.999
    benchmark.group = f"repulsion of a step, {embedding}, N={n} ({native.cpu_capability()})"
    benchmark.extra_info |= {"op": "push", "variant": variant, "embedding": embedding}
    benchmark.pedantic(
        call, rounds=5 if variant == "thesis" else 30 if n < 1000 else 9, warmup_rounds=2
    )
