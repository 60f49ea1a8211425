"""Stable Diffusion XL, from a pipeline and from a folder, gives the images of diffusers."""

import copy
from dataclasses import replace

import pytest
import torch

import fastrepulse
from fastrepulse import models
from fastrepulse.methods.base import Partition
from fastrepulse.metrics import to_pictures
from fastrepulse.noise import initial_noise
from fastrepulse.sampling.decode import decode
from fastrepulse.sampling.denoiser import Denoiser
from fastrepulse.sampling.memory import Budget
from fastrepulse.sampling.results import SampleResult
from helpers import small_pipelines as small
from helpers.tolerances import SAME_COMPUTATION

RTOL, ATOL = SAME_COMPUTATION
STEPS = 4


@pytest.fixture(scope="module")
def pipe():
    return small.whole_stable_diffusion_xl(models.load_model().tokenizer)


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "xl"
    pipe.save_pretrained(path)
    return path


def drawn_by(pipe, prompt, latents, **how):
    return pipe(
        prompt,
        num_images_per_prompt=2,
        latents=latents,
        num_inference_steps=STEPS,
        height=16,
        width=24,
        output_type="latent",
        **how,
    ).images


def sampled(model, prompt, latents, **how):
    settings = {"repulsion": None, "num_inference_steps": STEPS, "height": 16, "width": 24}
    return fastrepulse.sample(
        prompt, 2, model=model, latents=latents, progress=False, **{**settings, **how}
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0], ids=["plain", "guided"])
@pytest.mark.parametrize("negative", [None, "blue"], ids=["none", "negative"])
def test_latents_equal_the_pipelines(pipe, guidance_scale, negative):
    latents = initial_noise(0, 4, (4, 8, 12))
    prompts = ["a red planet", "a robot"]
    how = {"guidance_scale": guidance_scale}
    expected = drawn_by(pipe, prompts, latents, negative_prompt=negative and [negative] * 2, **how)
    got = sampled(pipe, prompts, latents, negative_prompt=negative or "", **how)
    torch.testing.assert_close(got.latents, expected, rtol=RTOL, atol=ATOL)


def test_the_unet_receives_the_image_size(pipe):
    latents = initial_noise(0, 2, (4, 8, 12))
    sized = models.load_model(pipe)
    expected = sampled(sized, "a robot", latents).latents
    ids = sized.size_ids(16, 24)
    assert ids.tolist() == [16, 24, 0, 0, 16, 24]
    other = Denoiser(
        sized.unet, sized.encode_prompts(["a robot"]), None, 1.0, 2, False, None, 2 * ids
    )
    same = Denoiser(sized.unet, sized.encode_prompts(["a robot"]), None, 1.0, 2, False, None, ids)
    text = sized.encode_prompts(["a robot"]).tokens.expand(2, -1, -1)
    prompts = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        outputs = [each(latents, torch.tensor(500), text, prompts) for each in (same, other)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4
    assert expected.isfinite().all()


def test_a_folder_gives_the_same_latents_as_its_pipeline(pipe, folder):
    latents = initial_noise(0, 2, (4, 8, 12))
    expected = sampled(pipe, "a robot", latents).latents
    got = sampled(folder, "a robot", latents).latents
    torch.testing.assert_close(got, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_the_fingerprint_depends_on_the_weights_of_every_network(pipe, part):
    model = models.load_model(pipe)
    changed = copy.deepcopy(getattr(model, part))
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    assert replace(model, **{part: changed}).fingerprint() != model.fingerprint()


def test_particles_repel(pipe):
    latents = initial_noise(0, 2, (4, 8, 12))
    alone = sampled(pipe, "a robot", latents).latents
    repelled = sampled(pipe, "a robot", latents, repulsion=fastrepulse.Repulsion("thirds", 1.0))
    assert (repelled.latents[0] - repelled.latents[1]).norm() > (alone[0] - alone[1]).norm()


def test_an_empty_negative_prompt_is_zeros_if_the_pipeline_is_configured_so(pipe):
    assert pipe.config.force_zeros_for_empty_prompt
    latents = initial_noise(0, 2, (4, 8, 12))
    zeros = sampled(pipe, "a robot", latents).latents
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        expected = drawn_by(pipe, "a robot", latents, guidance_scale=5.0)
        encoded = sampled(pipe, "a robot", latents).latents
    finally:
        pipe.register_to_config(force_zeros_for_empty_prompt=True)
    torch.testing.assert_close(encoded, expected, rtol=RTOL, atol=ATOL)
    assert (encoded - zeros).abs().max() > 1e-4


def test_a_decoder_that_overflows_in_half_precision_runs_in_float32(pipe):
    half = copy.copy(pipe)
    half.vae = copy.deepcopy(pipe.vae)
    model = models.load_model(half)
    with torch.no_grad():
        # Overflows float16, as some layers of SDXL's decoder do
        model.vae.decoder.conv_in.weight *= 3e5
        expected = model.decode(initial_noise(0, 1, (4, 8, 12)))
        model.vae.half()
        result = SampleResult([], initial_noise(0, 1, (4, 8, 12)), [], {})
        budget = Budget(model, 1, (4, 8, 12), None)
        (picture,) = decode(model, result, Partition(range(1), 1), None, budget, False).images
    assert model.vae.dtype == torch.float16
    torch.testing.assert_close(to_pictures([picture]), expected, rtol=0, atol=1e-2)


def test_a_cut_off_prompt_is_warned_about_once(pipe, caplog):
    sampled(pipe, "a planet " + "blue " * 90, initial_noise(0, 2, (4, 8, 12)))
    assert caplog.text.count("cut off is") == 1


def test_a_long_prompt_in_chunks_is_not_cut_off(pipe):
    prompt = "a planet " + " ".join(["blue"] * 30) + " green"
    latents = initial_noise(0, 2, (4, 8, 12))
    chunked = sampled(pipe, prompt, latents, long_prompts="chunks").latents
    other = sampled(pipe, prompt[:-5] + "red", latents, long_prompts="chunks").latents
    assert (chunked - other).abs().max() > 1e-4
