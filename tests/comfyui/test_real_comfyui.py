"""The node inside ComfyUI itself, on the shipped model in ComfyUI's own classes: `make comfyui`."""

import asyncio
import copy
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastrepulse
from fastrepulse import embeddings, integrations
from fastrepulse.methods.diagnostics import mean_distance
from fastrepulse.noise import initial_noise

pytest.importorskip("comfy", reason="ComfyUI is not there; run: make comfyui")

import comfy.nested_tensor
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import execution
import folder_paths
import nodes
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG

from fastrepulse.integrations.comfyui import hooks
from helpers.real_comfyui import flow_models, shipped_model
from helpers.real_comfyui.workflows import as_prompt

torch.set_num_threads(1)
FOLDER = Path(integrations.__file__).parent / "comfyui"
CFG_PP = [name for name in comfy.samplers.SAMPLER_NAMES if name.endswith("cfg_pp")]
OWN_LEVELS = ("dpm_fast", "dpm_adaptive")
"""Samplers that do not keep to the noise levels of the schedule."""


@pytest.fixture(scope="session")
def custom_nodes(tmp_path_factory):
    """A folder custom_nodes as the node's README fills it, loaded by ComfyUI itself."""
    folder = tmp_path_factory.mktemp("custom_nodes")
    shutil.copytree(FOLDER, folder / "fastrepulse")
    folder_paths.folder_names_and_paths["custom_nodes"] = ([str(folder)], set())
    asyncio.run(nodes.init_external_custom_nodes())
    return folder / "fastrepulse"


@pytest.fixture(scope="session")
def node(custom_nodes):
    return nodes.NODE_CLASS_MAPPINGS["FastRepulse"]()


@pytest.fixture(scope="session")
def shipped():
    """(MODEL, positive, negative) of the shipped model."""
    model, clip, _ = shipped_model.load()
    with torch.inference_mode():
        texts = [
            clip.encode_from_tokens_scheduled(clip.tokenize(text))
            for text in ("a potted plant", "")
        ]
    return model, *texts


def draw(
    model,
    positive,
    negative,
    count=3,
    steps=8,
    cfg=5.0,
    sampler="euler",
    scheduler="simple",
    latent=None,
    **how,
):
    """Draws as KSampler does."""
    latent = torch.zeros(count, 4, 16, 16) if latent is None else latent
    # As the execution engine runs nodes
    with torch.inference_mode():
        noise = how.pop("noise", None)
        noise = comfy.sample.prepare_noise(latent, 3) if noise is None else noise
        how = {"seed": 3, "disable_pbar": True, **how}
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, scheduler, positive, negative, latent, **how
        )


def repelling(node, model, strength=1.0, **how):
    return node.patch(model, strength, "thirds", 0.0, 0.0, 0, **how)[0]


def distance(latents):
    return mean_distance(embeddings.build("thirds")(latents.clone().flatten(1, -3).float()))


def test_comfyui_names_its_wrappers_as_the_node_does():
    names = comfy.patcher_extension.WrappersMP
    assert (names.SAMPLER_SAMPLE, names.PREDICT_NOISE) == (hooks.SAMPLE, hooks.PREDICT)


@pytest.mark.parametrize("steps, cfg", [(16, 5.0), (25, 7.5)])
def test_euler_with_the_node_draws_what_sample_draws(node, shipped, steps, cfg):
    scheduler = fastrepulse.load_model().scheduler("euler", steps)
    sigmas = scheduler.sigmas.clone()
    theirs = draw(
        repelling(node, shipped[0]),
        *shipped[1:],
        steps=steps,
        cfg=cfg,
        # ComfyUI multiplies by the first noise level
        noise=initial_noise(0, 4, (4, 16, 16)) * (scheduler.init_noise_sigma / sigmas[0]),
        latent=torch.zeros(4, 4, 16, 16),
        sigmas=sigmas,
        seed=0,
    )
    ours = fastrepulse.sample(
        "a potted plant",
        4,
        scheduler="euler",
        num_inference_steps=steps,
        guidance_scale=cfg,
        seed=0,
        progress=False,
        compile=False,
    )
    theirs = shipped[0].get_model_object("latent_format").process_in(theirs)
    torch.testing.assert_close(theirs, ours.latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_moves_apart_and_stays_clean(node, shipped, sampler):
    model, *texts = shipped
    # Scales of CFG++ are smaller
    how = {"sampler": sampler, "cfg": 1.0 if sampler in CFG_PP else 5.0}
    how["steps"] = 20 if sampler in OWN_LEVELS else 8
    alone = draw(model, *texts, **how)
    assert torch.equal(draw(repelling(node, model, 0.0), *texts, **how), alone)
    apart = draw(repelling(node, model), *texts, **how)
    assert distance(apart) > 1.1 * distance(alone)
    assert apart.std() < 1.35 * alone.std()


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_every_scheduler_moves_apart(node, shipped, scheduler):
    model, *texts = shipped
    # With 8 steps the last one alone is at a noise level of the window
    how = {"scheduler": scheduler, "steps": 16 if scheduler == "linear_quadratic" else 8}
    alone = draw(model, *texts, **how)
    apart = draw(repelling(node, model), *texts, **how)
    assert distance(apart) > 1.1 * distance(alone)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "heun", "lcm"])
def test_the_negative_is_not_computed_in_the_pause(node, shipped, sampler):
    rows = []

    def counting(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    model = repelling(node, shipped[0])
    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    model.add_wrapper_with_key(kind, "counting", counting)
    draw(model, *shipped[1:], sampler=sampler)
    # The first step has guidance, and all others of eight are in the pause
    assert set(rows) == {3, 6} and rows[0] == 6 and rows.count(3) > rows.count(6)


def test_the_sampler_that_overwrites_its_schedule_leaves_the_run_whole(node, shipped):
    sigmas = comfy.samplers.calculate_sigmas(
        shipped[0].get_model_object("model_sampling"), "simple", 8
    )
    given = sigmas.clone()
    draw(repelling(node, shipped[0]), *shipped[1:], sampler="uni_pc", sigmas=given)
    assert torch.equal(given, sigmas) and given[-1] == 0


@pytest.mark.parametrize("make", ["flux", "sd3", "qwen_image"])
def test_flow_models_move_apart(node, make):
    """Qwen-Image has latents of one frame."""
    model, texts = getattr(flow_models, make)(), (flow_models.text(1), flow_models.text(2))
    frame = (1,) if make == "qwen_image" else ()
    latent = torch.zeros(4, 16, *frame, 16, 16)
    alone = draw(model, *texts, latent=latent, cfg=3.0)
    apart = draw(repelling(node, model), *texts, latent=latent, cfg=3.0)
    assert apart.shape == alone.shape
    assert distance(apart) > 1.1 * distance(alone)


def test_what_is_no_image_is_refused_by_name(node):
    texts = (flow_models.text(1), flow_models.text(2))
    video = torch.zeros(2, 16, 3, 16, 16)
    with pytest.raises(ValueError, match=r"Repulsion \(fastrepulse\): .* of a video"):
        draw(repelling(node, flow_models.qwen_image()), *texts, latent=video, cfg=1.0)
    parts = [torch.zeros(2, 16, 16, 16), torch.zeros(2, 16, 8, 8)]
    both = comfy.nested_tensor.NestedTensor(parts)
    with pytest.raises(ValueError, match=r"Repulsion \(fastrepulse\): .* of several media"):
        draw(repelling(node, flow_models.flux()), *texts, latent=both, cfg=1.0)


def test_inpainting_keeps_what_is_not_masked(node, shipped):
    model, *texts = shipped
    image = draw(model, *texts)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:, :] = 1
    drawn = draw(repelling(node, model), *texts, latent=image, noise_mask=mask)
    torch.testing.assert_close(drawn[..., :7, :], image[..., :7, :])
    alone = draw(model, *texts, latent=image, noise_mask=mask)
    assert distance(drawn) > distance(alone)


@pytest.mark.parametrize("denoise", [0.8, 0.6])
def test_image_to_image_moves_apart(node, shipped, denoise):
    model, *texts = shipped
    image = draw(model, *texts, count=1).expand(3, -1, -1, -1)
    alone = draw(model, *texts, latent=image, denoise=denoise)
    apart = draw(repelling(node, model), *texts, latent=image, denoise=denoise)
    assert distance(apart) > 1.1 * distance(alone)


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "heun", "dpm_2", "euler_cfg_pp"])
def test_single_images_move_apart_through_the_bank(node, shipped, sampler):
    model, *texts = shipped
    noises = initial_noise(5, 4, (4, 16, 16)).split(1)

    def one_by_one(model):
        how = {"sampler": sampler, "cfg": 1.0 if sampler in CFG_PP else 5.0, "count": 1}
        drawn = [draw(model, *texts, noise=each, seed=i, **how) for i, each in enumerate(noises)]
        return torch.cat(drawn)

    alone = one_by_one(repelling(node, model))
    assert distance(one_by_one(repelling(node, model, bank=1))) > 1.1 * distance(alone)


@pytest.mark.parametrize("kind", ["basic", "dual"])
def test_other_guiders_run(node, shipped, kind):
    model, positive, negative = shipped
    guider = {"basic": Guider_Basic, "dual": Guider_DualCFG}[kind](repelling(node, model))
    if kind == "basic":
        guider.set_conds(positive)
    else:
        guider.set_conds(positive, negative, negative)
        guider.set_cfg(3.0, 3.0)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 8)
    latent = torch.zeros(3, 4, 16, 16)
    noise, sampler = comfy.sample.prepare_noise(latent, 3), comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        drawn = guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=3)
    assert drawn.isfinite().all() and drawn.std() > 0.1


class Server:
    """What the execution engine tells."""

    client_id = last_node_id = last_prompt_id = None

    def send_sync(self, *_):
        pass


@pytest.fixture
def workflow(custom_nodes, shipped, tmp_path):
    """The example workflow with small settings, as ComfyUI's server takes it, and its executor."""
    shipped_model.save(tmp_path / "v1-5-pruned-emaonly-fp16.safetensors")
    folder_paths.folder_names_and_paths["checkpoints"] = ([str(tmp_path)], {".safetensors"})
    folder_paths.set_output_directory(str(tmp_path))
    saved = json.loads((custom_nodes / "example_workflows" / "repulsion.json").read_text())
    prompt = as_prompt(saved, nodes.NODE_CLASS_MAPPINGS)
    inputs_of(prompt, "EmptyLatentImage").update(width=128, height=128, batch_size=3)
    inputs_of(prompt, "KSampler").update(steps=8)
    caches = {"cache_type": execution.CacheType.CLASSIC, "cache_args": {"lru": 0, "ram": 0}}
    return prompt, execution.PromptExecutor(Server(), **caches)


def inputs_of(prompt, kind):
    return next(each["inputs"] for each in prompt.values() if each["class_type"] == kind)


def queue(prompt, executor):
    valid, error, outputs, errors = asyncio.run(execution.validate_prompt("p", prompt, None))
    assert valid, (error, errors)
    executor.execute(prompt, "p", {}, outputs)
    assert executor.success, executor.status_messages


def test_the_example_workflow_runs_in_the_execution_engine(workflow, tmp_path):
    queue(*workflow)
    assert len(list(tmp_path.glob("repulsion_*.png"))) == 3


def test_the_bank_outlives_a_queued_prompt(workflow, monkeypatch):
    """Other words have another bank, a changed input of the node forgets all."""
    shown, (prompt, executor) = [], workflow
    page = SimpleNamespace(send_progress_text=lambda text, node: shown.append(text))
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=page))
    monkeypatch.setitem(sys.modules, "server", server)
    ours, sampler = inputs_of(prompt, "FastRepulse"), inputs_of(prompt, "KSampler")
    text = prompt[sampler["positive"][0]]["inputs"]
    inputs_of(prompt, "EmptyLatentImage").update(batch_size=1)
    for bank, seed, words in ((1, 0, "plant"), (1, 1, "plant"), (1, 2, "robot"), (2, 3, "plant")):
        ours["bank"], sampler["seed"], text["text"] = bank, seed, f"a {words}"
        queue(copy.deepcopy(prompt), executor)
    assert [re.search(r"has (\d) earlier", each)[1] for each in shown] == ["0", "1", "0", "0"]
