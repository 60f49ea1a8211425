"""A single-file checkpoint gives the images of the model that was saved into it."""

import gzip
import importlib.util
import json

import pytest
import torch

import fastrepulse
from fastrepulse import models
from fastrepulse.models import single_file
from fastrepulse.models.vocabulary import clip_tokenizer
from fastrepulse.noise import initial_noise
from helpers import single_files
from helpers import small_pipelines as small
from helpers.tolerances import SAME_COMPUTATION

RTOL, ATOL = SAME_COMPUTATION
V = {"modelspec.prediction_type": "v"}


def small_pipeline(kind):
    tokenizer = models.load_model().tokenizer
    if kind == "xl":
        return small.whole_stable_diffusion_xl(tokenizer)
    pipe, _ = small.made(
        small.stable_diffusion if kind == "sd1" else small.stable_diffusion_2, "euler"
    )
    act = {"sd1": "quick_gelu", "sd2": "gelu"}[kind]
    encoder = small.small_text_encoder("CLIPTextModel", tokenizer, 1, hidden_act=act, width=16)
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    return pipe


@pytest.fixture(scope="module", params=["sd1", "sd2", "xl"])
def small_case(request, tmp_path_factory):
    """A pipeline, its folder, and the weights of its checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    pipe = small_pipeline(request.param)
    pipe.save_pretrained(folder / "folder")
    return pipe, folder / "folder", single_files.checkpoint_weights(pipe, request.param)


def draw(model, **how):
    settings = {"num_inference_steps": 3, "repulsion": None, "progress": False, "height": 16}
    latents = initial_noise(0, 2, (4, 8, 12))
    return fastrepulse.sample(
        "a blue robot", 2, model=model, latents=latents, width=24, **{**settings, **how}
    )


def configurations(folder, tmp_path):
    """A copy of the folder without the weights."""
    import shutil

    bare = tmp_path / "config"
    shutil.copytree(folder, bare, ignore=lambda _, files: [f for f in files if "safetensors" in f])
    return bare


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_latents_equal_the_pipelines(small_case, prediction, tmp_path):
    pipe, folder, weights = small_case
    file = single_files.write(tmp_path / "model.safetensors", weights)
    pipe.scheduler.register_to_config(prediction_type=prediction)
    model = models.load_model(
        file, prediction_type=prediction, config=configurations(folder, tmp_path)
    )
    result = draw(model)
    torch.testing.assert_close(result.latents, draw(pipe).latents, rtol=RTOL, atol=ATOL)
    assert result.settings["prediction_type"] == prediction
    assert result.settings["model"] == str(file)


def test_half_precision_files_load_in_any_dtype(small_case, tmp_path):
    _, folder, weights = small_case
    half = {key: value.half() for key, value in weights.items()}
    file = single_files.write(tmp_path / "model.safetensors", half, V)
    for dtype in (torch.float32, torch.bfloat16):
        model = models.load_model(file, dtype=dtype, config=folder)
        assert {weight.dtype for weight in model.unet.parameters()} == {dtype}
        assert draw(model).latents.isfinite().all()


@pytest.mark.parametrize("part", ["middle_block.0.in_layers.2", "decoder.conv_out", "mlp"])
def test_a_missing_weight_is_refused(small_case, part, tmp_path):
    _, folder, weights = small_case
    missing = next(name for name in weights if part in name)
    fewer = {name: value for name, value in weights.items() if name != missing}
    file = single_files.write(tmp_path / "model.safetensors", fewer, V)
    with pytest.raises(ValueError, match=r"is incomplete: its \w+ lacks '\w+\."):
        models.load_model(file, config=folder)
    file = single_files.write(
        tmp_path / "model.safetensors", {**fewer, f"{missing}_": weights[missing]}, V
    )
    with pytest.raises(ValueError, match=r"is incomplete: its \w+ lacks '\w+\."):
        models.load_model(file, config=folder)


def test_an_unknown_weight_of_the_unet_is_refused(small_case, tmp_path):
    _, folder, weights = small_case
    name = "model.diffusion_model.middle_block.3.weight"
    file = single_files.write(tmp_path / "x.safetensors", {**weights, name: torch.zeros(2)}, V)
    with pytest.raises(ValueError, match=f"does not have: '{name}'"):
        models.load_model(file, config=folder)


def test_sizes_that_differ_from_the_configuration_are_refused(small_case, tmp_path):
    _, folder, weights = small_case
    file = single_files.write(tmp_path / "model.safetensors", weights, V)
    config = configurations(folder, tmp_path)
    unet_config = config / "unet" / "config.json"
    wider = {**json.loads(unet_config.read_text()), "block_out_channels": [16, 16]}
    unet_config.write_text(json.dumps(wider))
    with pytest.raises(ValueError, match=r"its sizes differ from|does not have"):
        models.load_model(file, config=config)


def test_the_shipped_model_as_a_single_file(tmp_path):
    pipe = shipped()
    weights = single_files.checkpoint_weights(pipe, "sd2")
    file = single_files.write(tmp_path / "model.safetensors", weights, V)
    model = models.load_model(file, config=models.DEFAULT_MODEL)
    how = {"num_inference_steps": 3, "seed": 1, "progress": False}
    expected = fastrepulse.sample("a robot", 2, **how)
    got = fastrepulse.sample("a robot", 2, model=model, **how)
    torch.testing.assert_close(got.latents, expected.latents, rtol=RTOL, atol=ATOL)


def shipped():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(models.DEFAULT_MODEL)


@pytest.fixture(scope="module")
def shapes():
    """Names and shapes of the weights in a small checkpoint of each kind."""
    return {
        kind: {
            key: list(value.shape)
            for key, value in single_files.checkpoint_weights(small_pipeline(kind), kind).items()
        }
        for kind in ("sd1", "sd2", "xl")
    }


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_the_kind_is_detected_from_the_names_of_weights(shapes, kind):
    assert single_file.kind_of("x", shapes[kind]).folder == kind


@pytest.mark.parametrize(
    ("kind", "metadata", "key", "predicted"),
    [
        ("sd1", {}, None, "epsilon"),
        ("xl", {}, None, "epsilon"),
        ("xl", {}, "v_pred", "v_prediction"),
        ("sd1", V, None, "v_prediction"),
        ("sd2", V, None, "v_prediction"),
        ("sd2", {"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        ("sd2", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, None, "v_prediction"),
        ("sd2", {"modelspec.architecture": "stable-diffusion-v2-512"}, None, "epsilon"),
    ],
)
def test_the_prediction_type_is_detected(shapes, kind, metadata, key, predicted, caplog):
    own = {**shapes[kind], **({key: []} if key else {})}
    found = single_file.kind_of("x", own)
    assert single_file.prediction_of("x", found, own, metadata) == predicted
    assert ("'epsilon' is assumed" in caplog.text) == (not metadata and not key)


def test_the_prediction_type_of_stable_diffusion_2_is_never_guessed(shapes):
    found = single_file.kind_of("x", shapes["sd2"])
    with pytest.raises(ValueError, match=r"'v_prediction' .* at 768 pixels.*'epsilon' .at 512"):
        single_file.prediction_of("x", found, shapes["sd2"], {})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda keys: {"lora_unet_down_blocks_0.alpha": []}, "is an adapter .LoRA."),
        (lambda keys: {}, "has no text encoder"),
        (lambda keys: {k: v for k, v in keys.items() if "cond_stage" not in k}, "no text encoder"),
        (lambda keys: {k: v for k, v in keys.items() if "first_stage" not in k}, "incomplete"),
        (lambda keys: {k: v for k, v in keys.items() if "diffusion_model" not in k}, "incomplete"),
        (
            lambda keys: {**keys, f"{single_file.UNET}input_blocks.0.0.weight": [8, 9, 3, 3]},
            "9 to 4",
        ),
        (lambda keys: {"model.diffusion_model.joint_blocks.0.x": [1]}, r"fastrepulse\.repel"),
        (lambda keys: {"double_blocks.0.img_attn.qkv.weight": [1]}, r"fastrepulse\.repel"),
    ],
    ids=["lora", "empty", "no-text", "no-vae", "no-unet", "inpainting", "sd3", "flux"],
)
def test_unsupported_files_are_refused(shapes, change, named):
    with pytest.raises(ValueError, match=named):
        single_file.kind_of("x", change(shapes["sd1"]))


def test_a_damaged_file_is_refused(tmp_path):
    weights = single_files.checkpoint_weights(small_pipeline("sd1"), "sd1")
    file = single_files.write(tmp_path / "model.safetensors", weights)
    whole = file.read_bytes()
    for end in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="damaged weights"):
            models.load_model(file)


def test_configurations_have_the_parameter_counts_of_the_original_models():
    import diffusers
    import transformers

    def count(kind, part, library):
        name = json.loads((single_file.CONFIGURATIONS / kind / "model_index.json").read_text())
        made = getattr(library, name[part][1])
        folder = single_file.CONFIGURATIONS / kind
        with torch.device("meta"):
            if library is transformers:
                config = made.config_class.from_pretrained(folder, subfolder=part)
                module = made(config)
            else:
                module = made.from_config(made.load_config(folder, subfolder=part))
        return sum(weight.numel() for weight in module.parameters())

    assert count("sd1", "unet", diffusers) == 859_520_964
    assert count("sd2", "unet", diffusers) == 865_910_724
    assert count("xl", "unet", diffusers) == 2_567_463_684
    assert count("sd1", "text_encoder", transformers) == 123_060_480
    assert count("sd2", "text_encoder", transformers) == 340_387_840
    assert count("xl", "text_encoder", transformers) == 123_060_480
    assert count("xl", "text_encoder_2", transformers) == 694_659_840
    for kind in ("sd1", "sd2", "xl"):
        assert count(kind, "vae", diffusers) == 83_653_863


def test_the_vocabulary_is_clips():
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("needs the vocabulary of open_clip_torch")
    tokenizer = clip_tokenizer("!")
    ids = [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]
    assert tokenizer("a photo of an astronaut riding a horse on mars").input_ids == ids
    assert len(tokenizer) == 49408 and tokenizer.pad_token_id == 0
    odd = "It’s a 3D cat's, été 東京 😀 <|endoftext|>"
    assert tokenizer.decode(tokenizer(odd).input_ids[1:-1]).startswith(
        "it ’ s a 3 d cat 's , été 東京"
    )


def test_the_vocabulary_is_read_without_importing_its_package(tmp_path, monkeypatch):
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    merges = ["a n", "an d</w>", "c at</w>", "a t</w>"]
    lines = "\n".join(["a version", *merges])
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = clip_tokenizer("!")
    # Each byte has two tokens, inside and at the end of a word; then 4 merges, start and end
    assert len(tokenizer) == 2 * 256 + 4 + 2
    assert tokenizer("AND at").input_ids == [516, 513, 515, 517]
    assert tokenizer.pad_token_id == 0 and tokenizer.model_max_length == 77
    other = clip_tokenizer("<|endoftext|>")
    assert other.pad_token_id == 517 and other("!").input_ids[1] == 256


def test_the_error_without_a_vocabulary_tells_how_to_install_it(monkeypatch):
    monkeypatch.setattr("fastrepulse.models.vocabulary.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps open_clip_torch"):
        clip_tokenizer("!")


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"prediction_type": "x0"}, ValueError, "prediction_type, if given, must be"),
        ({"config": 3}, TypeError, "config must be a path"),
        ({"config": "."}, ValueError, "config must be None unless model is a single file"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, named):
    with pytest.raises(error, match=named):
        models.load_model(**arguments)


def test_a_config_folder_must_hold_configurations(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"config must be a folder with a model_index"):
        models.load_model(tmp_path / "x.safetensors", config=tmp_path)


def test_a_pickled_file_is_refused(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="pickled weights are never loaded"):
        models.load_model(tmp_path / "x.ckpt")


def test_the_argument_prediction_type_overrides_the_folder(tmp_path):
    model = models.load_model(models.DEFAULT_MODEL, prediction_type="epsilon")
    assert model.scheduler("ddim", 5).config.prediction_type == "epsilon"
    assert models.load_model().scheduler("ddim", 5).config.prediction_type == "v_prediction"
    for argument in ("prediction_type", "config"):
        with pytest.raises(ValueError, match=f"{argument} must be None for a model that is loaded"):
            models.load_model(model, **{argument: "epsilon"})
