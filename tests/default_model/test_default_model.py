"""The shipped model: its captions, its tokenizer, and pictures that are what they should be."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse.default_model.judge import judge, to_tensor
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.demo import PROMPTS, Figures, compare
from fastrepulse.noise import initial_noise

NAMED = [pytest.param(subject, id=subject.name) for subject in SUBJECTS]


def full(subject, rng):
    return {attribute.name: rng.choice(attribute.values) for attribute in subject.attributes}


def test_there_are_eight_subjects_of_unlike_prompts():
    assert len(SUBJECTS) >= 8 and len(PROMPTS) == len(SUBJECTS)


@pytest.mark.parametrize("subject", NAMED)
def test_captions_are_told_apart_and_fit_the_tokenizer(subject):
    tokenizer = fastrepulse.load_model().tokenizer
    rng = random.Random(0)
    named = [full(subject, rng) for _ in range(200)]
    captions = {subject.caption(attributes) for attributes in named}
    assert len(captions) == len({tuple(attributes.values()) for attributes in named})
    for caption in captions:
        pieces = tokenizer.tokenize(caption)
        assert [piece.removesuffix("</w>") for piece in pieces] == caption.split()
        assert len(pieces) + 2 <= tokenizer.model_max_length


@pytest.mark.parametrize("subject", NAMED)
def test_attributes_are_read_from_what_was_drawn(subject):
    for attribute in subject.attributes:
        for drawn, word in attribute.words.items():
            assert attribute.read({attribute.option: drawn}) == word
            assert attribute.read({attribute.option: [f"#{drawn}"]}) == word
        assert attribute.read({}) == ("none" if attribute.absent else None)
        assert attribute.read({attribute.option: "no such thing"}) is None


def test_captions_by_hand():
    by_name = {subject.name: subject for subject in SUBJECTS}
    plant = {"kind": "cactus", "pot colour": "orange", "background": "blue"}
    assert by_name["plant"].caption(plant) == "a cactus in an orange pot on a blue background"
    monster = {"colour": "orange", "eyes": "one eye", "top": "none"}
    expected = "an orange monster with one eye and a bare head"
    assert by_name["monster"].caption(monster) == expected
    assert by_name["stones"].caption({}) == by_name["stones"].prompt == "a pile of stones"


def test_random_captions_run_from_sparse_to_full():
    subject, rng = SUBJECTS[2], random.Random(0)
    attributes = full(subject, rng)
    captions = [subject.random_caption(attributes, rng) for _ in range(400)]
    sparse = sum(caption == subject.prompt for caption in captions) / 400
    everything = sum(caption == subject.caption(attributes) for caption in captions) / 400
    assert 0.2 < sparse < 0.4 and 0.2 < everything < 0.4 and len(set(captions)) > 8


def test_training_favours_rare_values_in_full_captions_alone(tmp_path):
    from fastrepulse.default_model.train_unet import Captions

    stones = next(i for i, subject in enumerate(SUBJECTS) if subject.name == "stones")
    drawn = [{"capVariant": "ball"}] * 99 + [{"capVariant": "cube"}]
    np.savez(tmp_path / "train.npz", subjects=np.full(100, stones))
    (tmp_path / "train.json").write_text(json.dumps(drawn))
    tokenizer = fastrepulse.load_model().tokenizer
    captions = Captions(tmp_path, tokenizer)
    torch.manual_seed(0)
    cubes, texts = 0, []
    for _ in range(250):
        index, tokens = captions.batch(2)
        texts += tokenizer.batch_decode(tokens, skip_special_tokens=True)
        cubes += int((index == 99).sum())
    # Half of the rare half, and a hundredth of the even one
    assert 0.2 < cubes / 500 < 0.35
    sparse = texts.count(SUBJECTS[stones].prompt) / 500
    empty = texts.count("") / 500
    assert 0.1 < sparse < 0.35 and 0.05 < empty < 0.15


def test_style_labels_are_the_words_for_looks_of_whatever_subject(tmp_path):
    from fastrepulse.default_model.train_style_classifier import UNNAMED, WORDS, load_labels

    numbers = {subject.name: i for i, subject in enumerate(SUBJECTS)}
    drawn = {
        "plant": {"potColor": ["#7dd3fc"], "potVariant": "round", "backgroundColor": ["#0369a1"]},
        "face": {"faceColor": ["#7dd3fc"], "faceVariant": "circle"},
        "planet": {"planetColor": ["#47a7e7"], "surfaceVariant": "terra"},
    }
    np.savez(tmp_path / "train.npz", subjects=[numbers[name] for name in drawn])
    (tmp_path / "train.json").write_text(json.dumps(list(drawn.values())))
    shown = [
        {a: WORDS[a][i] for a, i in zip(WORDS, row, strict=True) if i != UNNAMED}
        for row in load_labels(tmp_path, "train").tolist()
    ]
    assert shown == [
        {"colour": "blue", "background": "blue", "shape": "round"},
        {"colour": "blue", "shape": "round"},
        {"colour": "blue", "surface": "patchy"},
    ]


@pytest.fixture(scope="module")
def independent_and_repelled():
    settings = {"num_inference_steps": 15, "seed": 0, "progress": False}
    return [
        fastrepulse.sample(list(PROMPTS), 8, **settings, **repulsion).images
        for repulsion in ({"repulsion": None}, {})
    ]


def test_sparse_prompts_are_drawn_as_asked(independent_and_repelled):
    independent, repelled = independent_and_repelled
    expected = [subject for subject in SUBJECTS for _ in range(8)]
    for images, least in ((independent, 0.95), (repelled, 0.9)):
        hits = [judged is s for (judged, _), s in zip(judge(images), expected, strict=True)]
        assert sum(hits) / len(hits) >= least


def test_the_default_repulsion_makes_clearly_more_different_pictures(independent_and_repelled):
    vendi = [
        sum(Figures.of(images[8 * i : 8 * i + 8], s).vendi for i, s in enumerate(SUBJECTS))
        for images in independent_and_repelled
    ]
    assert vendi[1] > 1.05 * vendi[0]


def test_attributes_of_full_captions_are_drawn():
    rng = random.Random(1)
    hits = []
    for subject in SUBJECTS:
        wanted = [full(subject, rng) for _ in range(4)]
        noise = initial_noise(3, len(wanted), (4, 16, 16))
        captions = [subject.caption(named) for named in wanted]
        images = fastrepulse.sample(captions, 1, latents=noise, progress=False).images
        for (_, drawn), named in zip(judge(images), wanted, strict=True):
            hits += [drawn.get(name) == word for name, word in named.items()]
    assert sum(hits) / len(hits) >= 0.9


def test_compare_takes_the_shipped_models_prompts_alone():
    with pytest.raises(ValueError, match=r"a planet.*'a zebra'"):
        compare("a zebra", 2, 0)


def test_held_out_pictures_survive_the_autoencoder():
    vae = fastrepulse.load_model().vae
    with Image.open(Path(__file__).parents[1] / "data" / "heldout.png") as sheet:
        boxes = [(x, y, x + 64, y + 64) for y in range(0, 512, 64) for x in range(0, 256, 64)]
        pictures = to_tensor([sheet.crop(box) for box in boxes])
    with torch.no_grad():
        again = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (again - pictures).square().mean(dim=(1, 2, 3)))
    assert psnr.mean() >= 30
