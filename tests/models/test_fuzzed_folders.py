"""Changed model folders: refused by name, or drawn as diffusers draws them."""

import inspect
import json
import random
import shutil

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import fastrepulse
from fastrepulse import models
from fastrepulse.noise import initial_noise
from helpers import small_pipelines as small
from helpers.tolerances import SAME_COMPUTATION

PARTS = {
    "unet": (diffusers.UNet2DConditionModel, "diffusion_pytorch_model.safetensors"),
    "vae": (diffusers.AutoencoderKL, "diffusion_pytorch_model.safetensors"),
    "text_encoder": (transformers.CLIPTextModel, "model.safetensors"),
    "text_encoder_2": (transformers.CLIPTextModelWithProjection, "model.safetensors"),
}
ALTERNATIVES = {
    "sample_size": (4, [8, 4]),
    "class_embed_type": ("timestep", "identity", "projection", "simple_projection"),
    "num_class_embeds": (3,),
    "addition_embed_type": (None, "text", "image", "text_time", "text_image", "image_hint"),
    "addition_time_embed_dim": (8,),
    "encoder_hid_dim_type": ("text_proj", "image_proj", "text_image_proj", "ip_image_proj"),
    "encoder_hid_dim": (16,),
    "time_cond_proj_dim": (8,),
    "time_embedding_type": ("fourier",),
    "time_embedding_dim": (24,),
    "time_embedding_act_fn": ("silu", "gelu"),
    "timestep_post_act": ("silu", "mish"),
    "resnet_time_scale_shift": ("scale_shift",),
    "attention_type": ("gated", "gated-text-image"),
    "act_fn": ("gelu", "relu", "mish"),
    "hidden_act": ("gelu", "relu"),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DSimpleCrossAttn", None),
    "down_block_types": (
        ("CrossAttnDownBlock2D", "DownBlock2D"),
        ("DownBlock2D", "DownBlock2D"),
        ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    ),
    "up_block_types": (("UpBlock2D", "CrossAttnUpBlock2D"), ("AttnUpDecoderBlock2D",) * 2),
    "only_cross_attention": (True, [True, False]),
    "block_out_channels": ([16, 16], [8, 16, 16]),
    "layers_per_block": (2, [1, 2]),
    "transformer_layers_per_block": (2, [1, 2]),
    "reverse_transformer_layers_per_block": ([2, 1],),
    "cross_attention_dim": (8, [16, 16]),
    "attention_head_dim": (4, [2, 4]),
    "num_attention_heads": (2, 4),
    "cross_attention_norm": ("layer_norm", "group_norm"),
    "addition_embed_type_num_heads": (2,),
    "latents_mean": ([0.5, -0.5, 1.0, 0.0],),
    "latents_std": ([2.0, 0.5, 1.0, 3.0],),
    "shift_factor": (0.5,),
    "scaling_factor": (1.0, 0.5),
    "prediction_type": ("v_prediction", "sample", "flow_prediction"),
    "beta_schedule": ("linear", "squaredcos_cap_v2", "sigmoid"),
    "trained_betas": ([i / 2e5 for i in range(1, 1001)],),
    "timestep_spacing": ("trailing", "linspace"),
    "final_sigmas_type": ("sigma_min",),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
    "use_karras_sigmas": (True,),
    "steps_offset": (0, 1),
    "mid_block_scale_factor": (2.0,),
}
"""Other legal values of settings whose type does not tell them."""
TOKENIZER = {
    "model_max_length": (3, 5),
    "pad_token": ("a", "<|startoftext|>", None),
    "bos_token": ("a", "<|endoftext|>"),
    "eos_token": ("a", "<|startoftext|>"),
    "unk_token": ("a",),
    "padding_side": ("left",),
    "truncation_side": ("left",),
    "add_prefix_space": (True,),
    "do_lower_case": (False,),
    "clean_up_tokenization_spaces": (True,),
    "additional_special_tokens": (["robot"],),
}
ALTERNATIVES |= TOKENIZER


def alternatives(name, value):
    """Other legal values of a setting of a network or a schedule."""
    if name in ALTERNATIVES:
        return [other for other in ALTERNATIVES[name] if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value] if value else [1]
    if isinstance(value, float):
        return [value * 1.5 if value else 0.5]
    return []


RTOL, ATOL = SAME_COMPUTATION
PROMPT = "a Robot, blue and odd"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: made(kind, tmp_path_factory.mktemp("models") / kind) for kind in ("sd", "xl")}


def made(kind, folder):
    tokenizer = models.load_model().tokenizer
    if kind == "xl":
        pipe = small.whole_stable_diffusion_xl(tokenizer)
    else:
        pipe, _ = small.made(small.stable_diffusion, "ddim")
        encoder = small.small_text_encoder("CLIPTextModel", tokenizer, 1, width=16)
        pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    pipe.save_pretrained(folder)
    return folder


def settings_of(kind, part):
    """The settings in a part's configuration, with the defaults that it leaves out."""
    if part == "scheduler":
        classes = ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep")
        classes = [getattr(diffusers, f"{each}Scheduler") for each in classes]
        return {k: v for each in classes for k, v in defaults(each).items()} | small.BETAS
    if part.startswith("tokenizer"):
        return dict.fromkeys(TOKENIZER)
    if part == "model_index":
        return {"force_zeros_for_empty_prompt": kind == "xl"}
    if part.startswith("text"):
        config = transformers.CLIPTextConfig().to_dict()
        names = "vocab_size hidden_size intermediate_size projection_dim num_hidden_layers"
        names += " num_attention_heads max_position_embeddings hidden_act layer_norm_eps"
        names += " attention_dropout eos_token_id bos_token_id pad_token_id"
        return {name: config[name] for name in names.split()} | {"use_attention_mask": False}
    return defaults(PARTS[part][0])


def defaults(kind):
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.name not in ("self", "kwargs")}


def cases():
    """All cases: kind of model, part, what is changed, and the number of a tensor or a value."""
    for kind in ("sd", "xl"):
        parts = [part for part in PARTS if kind == "xl" or part != "text_encoder_2"]
        for part in parts:
            for place in range(25):
                for what in ("removed", "renamed", "reshaped", "dtype"):
                    yield kind, part, what, place
            yield kind, part, "surplus", 0
        tokenizers = ("tokenizer", "tokenizer_2")[: 1 + (kind == "xl")]
        for part in (*parts, *tokenizers, "scheduler", "model_index"):
            for name, value in settings_of(kind, part).items():
                for other in alternatives(name, value):
                    yield kind, part, name, other


def change_tensor(folder, part, what, place):
    """Changes a tensor of a part; returns its name."""
    file = folder / part / PARTS[part][1]
    weights = load_file(file)
    # Spread over all layers
    names = sorted(weights)
    name = names[place * 37 % len(names)]
    tensor = weights[name]
    if what == "removed":
        del weights[name]
    elif what == "renamed":
        weights[f"{name}_"] = weights.pop(name)
    elif what == "reshaped":
        weights[name] = torch.cat([tensor, tensor[:1]])
    elif what == "dtype":
        weights[name] = tensor.to(random.Random(place).choice([torch.float64, torch.float16]))
    else:
        name = "surplus.weight"
        weights[name] = torch.zeros(2)
    save_file(weights, file, {"format": "pt"})
    return name


def change_setting(folder, part, name, value):
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    if part.startswith("tokenizer"):
        file = folder / part / "tokenizer_config.json"
    if part == "model_index":
        file = folder / "model_index.json"
    changed = {name: value}
    if name == "latents_mean":
        changed["latents_std"] = [2.0, 0.5, 1.0, 3.0]
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def give_new_weights(folder, part):
    """Writes random weights that fit a changed configuration; returns whether there can be any."""
    kind = PARTS[part][0]
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if part.startswith("text"):
                kind(transformers.CLIPTextConfig.from_pretrained(folder / part)).save_pretrained(
                    folder / part
                )
            else:
                config = kind.load_config(folder / part)
                network = kind.from_config(config)
                shutil.rmtree(folder / part)
                network.save_pretrained(folder / part)
                (folder / part / "config.json").write_text(json.dumps(dict(config)))
    except Exception:
        return False
    return True


def drawn_by_diffusers(folder):
    """Latents and image of the folder's own pipeline."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    size = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, *([size] * 2 if isinstance(size, int) else size))
    how = {"num_inference_steps": 2, "guidance_scale": 5.0}
    noise = initial_noise(0, 1, shape)
    how["height"], how["width"] = (side * pipe.vae_scale_factor for side in shape[1:])
    latents, image = (
        pipe(PROMPT, latents=noise, output_type=kind, **how).images for kind in ("latent", "pt")
    )
    return latents, image


def drawn_by_us(folder):
    model = models.load_model(folder)
    noise = initial_noise(0, 1, model.latent_shape(None, None))
    how = {"num_inference_steps": 2, "guidance_scale": 5.0}
    result = fastrepulse.sample(
        PROMPT,
        1,
        model=model,
        repulsion=None,
        latents=noise,
        progress=False,
        **how,
    )
    with torch.no_grad():
        return result.latents, model.decode(result.latents)


def is_refused_or_drawn_as_diffusers_does(folder, named):
    """Returns the error's text if the folder is refused, after checking that it names the cause."""
    try:
        ours, error = drawn_by_us(folder), None
    except Exception as raised:
        error = raised
    try:
        theirs = drawn_by_diffusers(folder)
    except Exception:
        assert error is not None, "diffusers refuses the folder"
        return str(error)
    if error is not None:
        assert isinstance(error, ValueError) and named in str(error), repr(error)
        return str(error)
    for one, other in zip(ours, theirs, strict=True):
        largest = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, rtol=RTOL, atol=largest * ATOL)
    return None


def name_of(case):
    return "-".join(str(each).replace(" ", "") for each in case)


CASES = list({name_of(case): case for case in cases()}.values())
IN_EVERY_RUN = {
    *("sd-text_encoder-removed-0", "sd-unet-renamed-3", "xl-text_encoder_2-reshaped-5"),
    *("sd-vae-surplus-0", "xl-unet-dtype-7", "sd-unet-time_cond_proj_dim-8"),
    *("sd-unet-num_class_embeds-3", "sd-unet-sample_size-[8,4]"),
    *(
        "xl-vae-latents_mean-[0.5,-0.5,1.0,0.0]",
        "xl-model_index-force_zeros_for_empty_prompt-False",
    ),
}


def params():
    for case in CASES:
        marks = () if name_of(case) in IN_EVERY_RUN else pytest.mark.slow
        yield pytest.param(*case, id=name_of(case), marks=marks)


def test_there_are_many_cases_and_a_sample_of_them_runs_always():
    names = [name_of(case) for case in CASES]
    assert len(names) > 500
    assert set(names) >= IN_EVERY_RUN


@pytest.mark.parametrize(("kind", "part", "what", "value"), list(params()))
def test_a_changed_folder_is_refused_by_name_or_drawn_as_diffusers_draws_it(
    kind, part, what, value, folders, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(folders[kind], folder)
    if what in ("removed", "renamed", "reshaped", "dtype", "surplus"):
        name = change_tensor(folder, part, what, value)
        refused = is_refused_or_drawn_as_diffusers_does(folder, name)
        assert (refused is None) == (what == "dtype")
        return
    change_setting(folder, part, what, value)
    refused = is_refused_or_drawn_as_diffusers_does(folder, part)
    if refused and part in PARTS and "tensors" in refused and give_new_weights(folder, part):
        is_refused_or_drawn_as_diffusers_does(folder, what)
