"""CLIP score, by a tiny random CLIP that is saved and read as a real one would be."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

import fastrepulse.default_model
from fastrepulse.metrics import clip_score

TOKENIZER = Path(fastrepulse.default_model.__file__).parent / "weights" / "tokenizer"
PROMPTS = ["a planet", "a potted plant", "a robot", "a landscape", "a face"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPImageProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **size,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        },
        vision_config={**size, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        projection_dim=3,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


@torch.no_grad()
def one_score(folder, image, prompt):
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    outputs = model.eval()(**inputs)
    return 100 * max(0, cosine_similarity(outputs.image_embeds, outputs.text_embeds).item())


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_clip_score_is_the_mean_over_pictures(folder, images, batch_size):
    scores = [one_score(folder, *pair) for pair in zip(images, PROMPTS, strict=True)]
    expected = np.mean(scores)
    assert max(scores) > 0
    assert clip_score(images, PROMPTS, folder, batch_size) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_clip_score_of_one_prompt_for_all(folder, images, prompt):
    expected = np.mean([one_score(folder, image, prompt) for image in images])
    assert clip_score(images, prompt, str(folder)) == pytest.approx(expected, abs=1e-3)


def test_clip_score_takes_long_prompts_and_transparent_pictures(folder, images):
    assert 0 <= clip_score([images[0].convert("RGBA")], "a planet " * 100, folder) <= 100


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"images": []}, "images"),
        ({"prompts": ["a planet"]}, "prompts must be one or 5, got 1"),
        ({"model": "/nothing"}, "model .*'/nothing'"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_clip_score_refuses_what_it_cannot_score(folder, images, changes, named):
    arguments = {"images": images, "prompts": "a planet", "model": folder}
    with pytest.raises(ValueError, match=named):
        clip_score(**{**arguments, **changes})


def test_clip_weights_are_not_unpickled(folder, images, tmp_path):
    shutil.copytree(folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(OSError, match="safetensors"):
        clip_score(images, "a planet", tmp_path / "clip")
