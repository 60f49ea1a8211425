"""The ComfyUI node, from a folder of its own, in a denoising loop on the shipped model.

ComfyUI itself is not installed. What stands in for it below has the two methods of its ModelPatcher
that the node calls, and hands over what its samplers do after guidance.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion, embeddings, integrations
from fastrepulse.methods.diagnostics import mean_distance
from fastrepulse.noise import initial_noise
from fastrepulse.schedule import NoiseSchedule
from helpers.tolerances import SAME_COMPUTATION

FOLDER = Path(integrations.__file__).parent / "comfyui"
STEPS = 6


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder as ComfyUI loads it: copied, and imported by its path."""
    folder = tmp_path_factory.mktemp("custom_nodes") / "fastrepulse"
    shutil.copytree(FOLDER, folder)
    name = "custom_nodes_fastrepulse"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name], sys.modules[f"{name}.node"]


@pytest.fixture(scope="module")
def node(package):
    return package.NODE_CLASS_MAPPINGS["FastRepulse"]()


class Exploding:
    """Adds noise as ComfyUI's EPS and V_PREDICTION do."""

    def noise_scaling(self, sigma, noise, latent_image):
        return noise * sigma + latent_image


class Flow:
    """Adds noise as ComfyUI's CONST does."""

    def noise_scaling(self, sigma, noise, latent_image):
        return sigma * noise + (1 - sigma) * latent_image


class Patcher:
    def __init__(self, functions=()):
        self.functions = list(functions)

    def clone(self):
        return Patcher(self.functions)

    def set_model_sampler_post_cfg_function(self, function):
        self.functions.append(function)

    def after_guidance(self, denoised, sigma, noisy, sampling, sigmas=None):
        options = {} if sigmas is None else {"transformer_options": {"sample_sigmas": sigmas}}
        for function in self.functions:
            args = {"denoised": denoised, "sigma": sigma.expand(len(noisy)), "input": noisy}
            args["model"] = SimpleNamespace(model_sampling=sampling)
            denoised = function({**args, "model_options": options})
        return denoised


def euler(patcher, count=4):
    """k-diffusion's Euler sampler on the shipped model, in inference mode as ComfyUI runs it."""
    model = fastrepulse.load_model()
    scheduler = model.scheduler("euler", STEPS)
    text = model.encode_prompts(["a potted plant"]).tokens.expand(count, -1, -1)
    schedule = NoiseSchedule.of(scheduler)
    with torch.inference_mode():
        x = initial_noise(0, count, (4, 16, 16)) * scheduler.init_noise_sigma
        for step, time in enumerate(scheduler.timesteps):
            sigma, following = scheduler.sigmas[step : step + 2]
            output = model.unet(x / (1 + sigma**2) ** 0.5, time, encoder_hidden_states=text).sample
            denoised = schedule.denoised(x, output, step)
            denoised = patcher.after_guidance(denoised, sigma, x, Exploding(), scheduler.sigmas)
            x = x + (following - sigma) * (x - denoised) / sigma
    return x


def test_strength_zero_is_bit_identical_and_strength_moves_apart(node):
    alone = euler(Patcher())
    model = Patcher()
    (nothing,) = node.patch(model, 0.0, "thirds", 10_000.0, 2.0, 0)
    assert torch.equal(euler(nothing), alone)
    for embedding in ("thirds", "random_cnn"):
        (repelling,) = node.patch(model, 8.0, embedding, 10_000.0, 2.0, 0)
        embed = embeddings.build(embedding)
        assert mean_distance(embed(euler(repelling))) > 1.02 * mean_distance(embed(alone))
    assert model.functions == []


def test_it_draws_what_sample_draws(node):
    (repelling,) = node.patch(Patcher(), 2.0, "thirds", 10_000.0, 2.0, 0)
    ours = fastrepulse.sample(
        "a potted plant",
        4,
        repulsion=Repulsion("thirds", 2.0, window=(10_000.0, 2.0), pause=None),
        scheduler="euler",
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        seed=0,
        progress=False,
    )
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(euler(repelling), ours.latents, rtol=rtol, atol=10 * atol)


@pytest.mark.parametrize("sigma", [1.0, 0.9, 0.5])
def test_flow_models_are_corrected_at_their_noise_level(node, sigma):
    x0, noise = 0.3 * initial_noise(0, 5, (16, 8, 8)), initial_noise(1, 5, (16, 8, 8))
    x = sigma * noise + (1 - sigma) * x0
    (repelling,) = node.patch(Patcher(), 2.0, "pooled", 10_000.0, 0.1, 0)
    corrected = repelling.after_guidance(x0, torch.tensor([sigma]), x, Flow())
    level = sigma / max(1 - sigma, 2**-12)
    repulsion = Repulsion("pooled", 2.0, window=(10_000.0, 0.1))
    expected = integrations.corrected_denoised(x0, x / max(1 - sigma, 2**-12), level, repulsion)
    torch.testing.assert_close(corrected, expected, rtol=1e-4, atol=1e-4 * level)
    # In units of the clean latents; at 8x8 latents twice as long as at 16x16
    length = (corrected - x0).square().mean().sqrt().item()
    assert length == pytest.approx(2.0 * 2.0 * level, rel=0.1)


def test_a_flows_next_level_bounds_the_push(node):
    x0, sigmas = 0.3 * initial_noise(0, 5, (16, 8, 8)), torch.tensor([0.9, 0.5, 0.0])
    (repelling,) = node.patch(Patcher(), 2.0, "pooled", 10_000.0, 0.1, 0)
    corrected = repelling.after_guidance(x0, sigmas[:1], x0, Flow(), sigmas)
    repulsion = Repulsion("pooled", 2.0, window=(10_000.0, 0.1))
    expected = integrations.corrected_denoised(x0, x0, 9.0, repulsion, next_sigma=1.0)
    torch.testing.assert_close(corrected, expected, rtol=1e-3, atol=1e-4)
    last = repelling.after_guidance(x0, sigmas[1:2], x0, Flow(), sigmas)
    assert torch.equal(last, x0)


def test_video_latents_are_refused(node):
    (repelling,) = node.patch(Patcher(), 8.0, "pooled", 10_000.0, 0.1, 0)
    video = torch.zeros(2, 16, 5, 8, 8)
    with pytest.raises(ValueError, match=r"denoised must be .*, got \[2, 16, 5, 8, 8\]"):
        repelling.after_guidance(video, torch.tensor([5.0]), video, Exploding())


def test_a_window_upside_down_is_refused(node):
    with pytest.raises(ValueError, match="high > low"):
        node.patch(Patcher(), 8.0, "pooled", 1.0, 2.0, 0)


def test_the_example_workflow_fits_the_node(package, node):
    workflow = json.loads((FOLDER / "example_workflows" / "repulsion.json").read_text())
    nodes = {each["id"]: each for each in workflow["nodes"]}
    for link, source, slot, target, place, kind in workflow["links"]:
        output, taken = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in output["links"] and taken["link"] == link
        assert output["type"] == taken["type"] == kind
    (ours,) = [each for each in nodes.values() if each["type"] in package.NODE_CLASS_MAPPINGS]
    inputs = dict(node.INPUT_TYPES()["required"])
    assert [given["type"] for given in ours["inputs"]] == [inputs.pop("model")[0]]
    node.patch(Patcher(), **dict(zip(inputs, ours["widgets_values"], strict=True)))
    for value, (kind, *options) in zip(ours["widgets_values"], inputs.values(), strict=True):
        if isinstance(kind, list):
            assert value in kind and options[0]["default"] in kind
        else:
            assert options[0]["min"] <= value <= options[0]["max"]
