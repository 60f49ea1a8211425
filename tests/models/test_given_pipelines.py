"""A loaded pipeline's parts are used without copying or changing them."""

import copy
import gc
import weakref

import pytest
import torch

import fastrepulse
from fastrepulse import models
from fastrepulse.noise import initial_noise
from helpers import small_pipelines as small
from helpers.tolerances import SAME_COMPUTATION

RTOL, ATOL = SAME_COMPUTATION
STEPS = 4


def shipped():
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(models.DEFAULT_MODEL, torch_dtype=torch.float32)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_adapters(pipe):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipe.unet.add_adapter(config, "sketch")
        pipe.unet.add_adapter(config, "ink")
    pipe.unet.set_adapters(["sketch", "ink"])


def with_a_token(pipe):
    embedding = torch.randn(2, 128, generator=torch.manual_seed(1)) / 10
    pipe.load_textual_inversion({"<odd>": embedding}, token="<odd>")


def with_another_autoencoder(pipe):
    pipe.vae = copy.deepcopy(pipe.vae)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += 0.3


def with_another_schedule(pipe):
    config = {**pipe.scheduler.config, "prediction_type": "epsilon", "beta_end": 0.02}
    pipe.scheduler = type(pipe.scheduler).from_config(config)


def with_a_compiled_unet(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: None,
        with_adapters,
        with_a_token,
        with_another_autoencoder,
        with_another_schedule,
        with_a_compiled_unet,
    ],
    ids=["plain", "adapters", "token", "autoencoder", "schedule", "compiled"],
)
def test_images_equal_the_pipelines(change):
    pipe = shipped()
    change(pipe)
    latents = initial_noise(0, 2, (4, 16, 16))
    prompt = "an <odd> planet"
    expected = pipe(
        prompt,
        num_images_per_prompt=2,
        latents=latents,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="pt",
    ).images
    how = {"repulsion": None, "latents": latents, "num_inference_steps": STEPS, "progress": False}
    result = fastrepulse.sample(prompt, 2, model=pipe, **how)
    from fastrepulse.metrics import to_pictures

    torch.testing.assert_close(to_pictures(result.images), expected, rtol=0, atol=1.1 / 255)
    name = result.settings["model"]
    assert ("with ink, sketch" in name) == (change is with_adapters)


def test_sampling_does_not_change_a_pipeline():
    pipe = shipped()
    with_adapters(pipe)
    pipe.unet.train()
    before = {
        part: [(name, type(module), module.training) for name, module in value.named_modules()]
        for part, value in pipe.components.items()
        if isinstance(value, torch.nn.Module)
    }
    weights = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    processors = pipe.unet.attn_processors
    config = dict(pipe.scheduler.config)
    fastrepulse.sample("a planet", 3, model=pipe, num_inference_steps=STEPS, progress=False)
    for part, modules in before.items():
        now = getattr(pipe, part).named_modules()
        assert [(name, type(module), module.training) for name, module in now] == modules
    for name, tensor in pipe.unet.state_dict().items():
        assert torch.equal(tensor, weights[name])
        assert tensor.stride() == weights[name].stride()
    assert pipe.unet.attn_processors == processors
    assert dict(pipe.scheduler.config) == config


def test_parts_are_shared_and_freed_with_the_pipeline():
    pipe = shipped()
    model = models.load_model(pipe)
    assert model.unet is pipe.unet and model.vae is pipe.vae
    assert models.load_model(model) is model
    freed = weakref.ref(pipe.unet)
    fastrepulse.sample("a planet", 2, model=pipe, num_inference_steps=2, progress=False)
    del pipe, model
    gc.collect()
    assert freed() is None


def test_compiled_forward_passes_are_kept_with_the_unet():
    pipe = shipped()
    first = models.load_model(pipe)
    first.forwards[True] = (print, print)
    assert models.load_model(pipe).forwards is first.forwards
    pipe.unet = copy.deepcopy(pipe.unet)
    assert models.load_model(pipe).forwards == {}


@pytest.mark.parametrize(
    ("family", "short"),
    [
        (small.stable_diffusion_xl, "euler"),
        (small.stable_diffusion_3, "flow-euler"),
        (small.flux, "flow-euler"),
        (small.pixart, "dpm++"),
        (small.inpainting, "euler"),
    ],
)
def test_the_error_for_an_unsupported_pipeline_shows_how_to_wrap_its_scheduler(family, short):
    pipe, _ = small.made(family, short)
    with pytest.raises(ValueError, match=r"fastrepulse\.repel\(pipe\)"):
        fastrepulse.sample("a planet", model=pipe)


def test_a_pipeline_with_offloading_is_refused():
    pipe = shipped()
    pipe.unet._hf_hook = object()
    with pytest.raises(ValueError, match="with offloading; use remove_all_hooks"):
        fastrepulse.sample("a planet", model=pipe)


def test_another_dtype_than_the_pipelines_is_refused():
    with pytest.raises(ValueError, match=r"dtype of the model given is torch\.float32"):
        fastrepulse.sample("a planet", model=shipped(), dtype=torch.float16)
