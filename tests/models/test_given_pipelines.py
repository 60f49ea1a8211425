"""A loaded pipeline's parts are used without copying or changing them."""

import copy
import gc
import tempfile
import weakref
from functools import partial

import diffusers
import pytest
import torch
from torch import nn

import fastrepulse
from fastrepulse import models
from fastrepulse.noise import initial_noise
from helpers import small_pipelines as small
from helpers.quantised import Int8Weight, NamedWeight, OpaqueWeight, quantise
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


def with_a_tiny_autoencoder(pipe):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.vae = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(16, 16, 16),
            decoder_block_out_channels=(16, 16, 16),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )


def with_another_schedule(pipe):
    config = {**pipe.scheduler.config, "prediction_type": "epsilon", "beta_end": 0.02}
    pipe.scheduler = type(pipe.scheduler).from_config(config)


def with_a_compiled_unet(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def layers(pipe, *kinds):
    for network in (pipe.unet, pipe.vae):
        yield from (each for each in network.modules() if isinstance(each, kinds))


def with_hooks(pipe):
    for layer in layers(pipe, nn.GroupNorm, nn.SiLU, nn.Dropout):
        layer.register_forward_hook(lambda layer, given, output: 0.98 * output)


def with_hooks_before_convolutions(pipe):
    for layer in layers(pipe, nn.Conv2d):
        layer.register_forward_pre_hook(lambda layer, given: (0.98 * given[0],))


def with_patched_forwards(pipe):
    for layer in layers(pipe, nn.Conv2d, nn.GroupNorm):
        layer.forward = lambda *given, before=layer.forward: 0.98 * before(*given)


def with_weight_norm(pipe):
    for layer in list(layers(pipe, nn.Conv2d)):
        nn.utils.parametrizations.weight_norm(layer)


def with_other_adapters_since(pipe):
    with_adapters(pipe)
    fastrepulse.sample("a planet", 1, model=pipe, num_inference_steps=1, progress=False)
    pipe.unet.set_adapters(["ink"], [0.5])


def with_group_offloading(pipe, kind, **how):
    cpu = torch.device("cpu")
    for network in (pipe.unet, pipe.vae):
        network.enable_group_offload(cpu, cpu, offload_type=kind, **how)


def with_offloading_to_disk(pipe):
    folder = tempfile.TemporaryDirectory()
    with_group_offloading(pipe, "leaf_level", offload_to_disk_path=folder.name)
    pipe.offloaded_to = folder  # removed with the pipeline


CHANGES = {
    "plain": lambda pipe: None,
    "adapters": with_adapters,
    "token": with_a_token,
    "autoencoder": with_another_autoencoder,
    "tiny-autoencoder": with_a_tiny_autoencoder,
    "schedule": with_another_schedule,
    "compiled": with_a_compiled_unet,
    "hooks": with_hooks,
    "hooks-before": with_hooks_before_convolutions,
    "patched": with_patched_forwards,
    "weight-norm": with_weight_norm,
    "swapped-adapters": with_other_adapters_since,
    "fp8": lambda pipe: pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
    "freeu": lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "fused-projections": lambda pipe: pipe.fuse_qkv_projections(),
    "tiling": lambda pipe: pipe.vae.enable_tiling(),
    "slicing": lambda pipe: (pipe.enable_attention_slicing(), pipe.vae.enable_slicing()),
    "group-offload": partial(with_group_offloading, kind="block_level", num_blocks_per_group=1),
    "disk-offload": with_offloading_to_disk,
    "int8": lambda pipe: quantise(pipe.unet, Int8Weight, (nn.Linear, nn.Conv2d)),
    "opaque": lambda pipe: quantise(pipe.unet, OpaqueWeight),
    "subclass": lambda pipe: quantise(pipe.unet, NamedWeight, (nn.Linear, nn.Conv2d)),
}
"""What people do to a pipeline."""


@pytest.mark.parametrize("change", CHANGES)
def test_images_equal_the_pipelines(change):
    pipe = shipped()
    CHANGES[change](pipe)
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
    assert ("with ink, sketch" in name) == ("adapters" in change)


def test_a_folder_with_a_tiny_autoencoder_is_loaded_and_encodes_images(tmp_path):
    pipe = shipped()
    with_a_tiny_autoencoder(pipe)
    pipe.save_pretrained(tmp_path / "model")
    model = models.load_model(tmp_path / "model")
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = pipe.vae.encode(2 * images - 1).latents * pipe.vae.config.scaling_factor
        torch.testing.assert_close(model.encode(images), expected)
        torch.testing.assert_close(
            model.decode(expected), (pipe.vae.decode(expected).sample / 2 + 0.5).clamp(0, 1)
        )


@pytest.mark.parametrize("kind", [Int8Weight, NamedWeight])
def test_the_fingerprint_depends_on_quantised_weights(kind):
    pipe = shipped()
    quantise(pipe.unet, kind)
    before = models.load_model(pipe).fingerprint()
    weight = pipe.unet.time_embedding.linear_1.weight
    getattr(weight, "values" if kind is Int8Weight else "data")[:1] += 1
    assert models.load_model(pipe).fingerprint() != before


@pytest.mark.parametrize("change", ["group-offload", "disk-offload", "fp8", "opaque"])
def test_the_fingerprint_is_the_same_for_a_pipeline_that_is_made_again(change):
    made = []
    for _ in range(2):
        pipe = shipped()
        CHANGES[change](pipe)
        fastrepulse.sample("a planet", 1, model=pipe, num_inference_steps=1, progress=False)
        made.append(models.load_model(pipe).fingerprint())
    assert made[0] == made[1]


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
