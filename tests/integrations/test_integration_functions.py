"""The functions for other people's loops, and the loops that the documentation shows."""

import importlib.util
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from fastrepulse import Repulsion, embeddings
from fastrepulse.integrations import corrected_denoised, corrected_epsilon, repulsive_force
from fastrepulse.methods.diagnostics import mean_distance
from fastrepulse.methods.step_length import MAX_MOVE
from fastrepulse.noise import initial_noise
from helpers.tolerances import AGAINST_FLOAT64

DOCS = Path(__file__).resolve().parents[2] / "docs"
SNIPPETS = re.findall(r"```python\n(.*?)```", (DOCS / "integrations.md").read_text(), re.DOTALL)
REPULSION = Repulsion("pooled", 2.0)


def documented(name):
    """What the one snippet of the documentation that defines a function makes."""
    (snippet,) = [snippet for snippet in SNIPPETS if f"def {name}(" in snippet]
    definitions = {}
    exec(snippet.split("\npictures = ")[0], definitions)
    return definitions[name]


def test_force_by_hand_for_two_particles():
    latents = torch.zeros(2, 1, 2, 2)
    latents[1] = 1.0
    repulsion = Repulsion("channel_mean", 3.0, on="noisy", window=(9.0, 4.0))
    force = repulsive_force(latents, latents, 5.0, repulsion)
    # Straight apart; at 2x2 latents 3 * 8 times as long as the noise, of which the score is 1 / 5
    torch.testing.assert_close(force[1], torch.full((1, 2, 2), 3.0 * 8 / 5.0))
    bounded = repulsive_force(latents, latents, 5.0, repulsion, next_sigma=4.0)
    torch.testing.assert_close(bounded[1], torch.full((1, 2, 2), MAX_MOVE * 4 / (5 * (5 - 4))))
    torch.testing.assert_close(force[0], -force[1])


@pytest.mark.parametrize("on", ["noisy", "denoised"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_the_three_functions_say_the_same(on, dtype):
    repulsion, sigma = Repulsion("thirds", 2.0, on=on), 5.0
    x0 = initial_noise(0, 6, (4, 8, 8)).to(dtype)
    epsilon = initial_noise(1, 6, (4, 8, 8)).to(dtype)
    z = x0.float() + sigma * epsilon.float()
    how = {"group_size": 3, "step": 2, "seed": 7}
    force = repulsive_force(x0, z, sigma, repulsion, **how)
    denoised = corrected_denoised(x0, z, sigma, repulsion, **how)
    corrected = corrected_epsilon(epsilon, z, sigma, repulsion, **how)
    assert force.dtype == torch.float32
    assert denoised.dtype == corrected.dtype == dtype
    rtol, atol = AGAINST_FLOAT64[dtype]
    expected = x0.double() + sigma**2 * force.double()
    torch.testing.assert_close(denoised.double(), expected, rtol=rtol, atol=atol)
    by_epsilon = (z - sigma * corrected.float()).double()
    torch.testing.assert_close(by_epsilon, expected, rtol=rtol, atol=40 * atol)


def test_groups_repel_on_their_own():
    x0, z = initial_noise(0, 6, (4, 8, 8)), 5 * initial_noise(1, 6, (4, 8, 8))
    repulsion = Repulsion("pooled")
    both = repulsive_force(x0, z, 5.0, repulsion, group_size=3)
    torch.testing.assert_close(both[3:], repulsive_force(x0[3:], z[3:], 5.0, repulsion))


def test_nothing_outside_the_window_nor_for_a_batch_of_one():
    latents = initial_noise(0, 4, (4, 8, 8))
    assert not repulsive_force(latents, latents, 1.4, REPULSION).any()
    with pytest.warns(UserWarning, match="batch of one has nothing to repel from"):
        assert not repulsive_force(latents[:1], latents[:1], 5.0, REPULSION).any()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pause": (8, 1), "restart": (3, 1)}, r"pause=.* and restart=.* cannot be obeyed"),
        (
            {"restart": (3, 1)},
            r"^restart=Window\(high=3, low=1\) of the repulsion cannot be obeyed",
        ),
        ({"pause": (8, 1)}, r"^pause=Window\(high=8, low=1\) of the repulsion cannot be obeyed"),
    ],
)
def test_what_cannot_be_obeyed_is_named_in_a_warning(settings, named):
    x0, z = (initial_noise(seed, 3, (4, 8, 8)) for seed in (0, 1))
    with pytest.warns(UserWarning, match=named):
        warned = repulsive_force(x0, z, 5.0, Repulsion("pooled", **settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = repulsive_force(x0, z, 5.0, Repulsion("pooled", pause=None, restart=None))
        by_name = repulsive_force(x0, z, 5.0, "pooled")
    assert torch.equal(warned, silent) and torch.equal(by_name, silent)


def test_latents_of_inference_mode_and_of_a_graph_are_taken():
    latents = initial_noise(0, 4, (4, 16, 16))
    expected = repulsive_force(latents, latents, 5.0)
    with torch.inference_mode():
        assert torch.equal(repulsive_force(latents * 1, latents * 1, 5.0), expected)
    tracked = latents.clone().requires_grad_()
    tracked = repulsive_force(tracked, tracked, 5.0)
    assert torch.equal(tracked, expected) and not tracked.requires_grad


@pytest.mark.parametrize(
    ("latents", "arguments", "error", "named"),
    [
        pytest.param((6, 16), {}, ValueError, r"denoised must be .* got \[6, 16\]", id="shape"),
        pytest.param((6, 4, 8, 8), {"group_size": 4}, ValueError, "batch of 6, got 4", id="divide"),
        pytest.param((6, 4, 8, 8), {"group_size": 1}, ValueError, "at least 2, got 1", id="one"),
        pytest.param((6, 4, 8, 8), {"group_size": 3.0}, TypeError, "an int .*, got 3.0", id="int"),
        pytest.param((6, 4, 8, 8), {"repulsion": 3}, TypeError, "got 3", id="type"),
        pytest.param((6, 4, 8, 8), {"repulsion": "colour"}, ValueError, "'colour'", id="name"),
    ],
)
def test_bad_arguments_are_named(latents, arguments, error, named):
    with pytest.raises(error, match=named):
        repulsive_force(torch.zeros(latents), torch.zeros(latents), 5.0, **arguments)


def test_latents_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"z must be \[2, 4, 8, 8\] .* got \[2, 4, 8, 16\]"):
        repulsive_force(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 16), 5.0)


def test_importing_the_integrations_loads_no_other_library():
    program = (
        "import sys, fastrepulse.integrations, fastrepulse.integrations.comfyui;"
        "print([m for m in ('diffusers', 'transformers', 'triton', 'comfy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[-1][:40])
def test_what_the_snippets_import_is_there(snippet):
    lines = [line for line in snippet.splitlines() if line.startswith(("import", "from"))]
    exec("\n".join(lines), {})
    compile(snippet, "docs/integrations.md", "exec")


def test_the_documented_sampler_draws_different_pictures():
    sample = documented("sample")
    alone = sample("a potted plant", 5, Repulsion("thirds", strength=0), steps=8)
    repelled = sample("a potted plant", 5, Repulsion("thirds", strength=8), steps=8)
    assert repelled.shape == (5, 3, 64, 64)
    thirds = embeddings.build("thirds")
    assert mean_distance(thirds(repelled)) > 1.1 * mean_distance(thirds(alone))


def test_svgd_s_direction_is_its_sum_over_pairs():
    x, scores = initial_noise(0, 30, (3,)), initial_noise(1, 30, (3,))
    h = torch.pdist(x.double()).square().median() / math.log(30)
    apart = x.double()[:, None] - x.double()[None]  # [i, j, d]
    kernel = torch.exp(-apart.square().sum(dim=2) / h)
    expected = (kernel @ scores.double() + (2 / h * kernel[..., None] * apart).sum(dim=1)) / 30
    direction = documented("svgd_direction")(x, scores)
    torch.testing.assert_close(direction.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_svgd_covers_the_banana():
    spec = importlib.util.spec_from_file_location("svgd", DOCS / "svgd.py")
    svgd = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(svgd)
    x = svgd.sample(100, steps=1000)
    along, across = x[:, 0], x[:, 1] - x[:, 0] ** 2 / 4
    assert along.mean().item() == pytest.approx(0, abs=0.1)
    assert along.std().item() == pytest.approx(2, rel=0.2)
    assert across.std().item() == pytest.approx(0.5, rel=0.2)
    scores = svgd.score(x)
    torch.testing.assert_close(
        svgd.svgd_direction(x, scores), documented("svgd_direction")(x, scores)
    )
