"""The shipped model: captions, tokenizer, training batches and image quality."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.default_model.judge import judge, to_tensor
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.default_model.training.captions import CaptionedPictures
from fastrepulse.default_model.training.frequencies import (
    ATTRIBUTE_EXPONENT,
    UNSAID,
    draw_even,
    draw_long_tailed,
    say,
    zipf,
)
from fastrepulse.demo import compare
from fastrepulse.noise import initial_noise

NAMED = [pytest.param(subject, id=subject.name) for subject in SUBJECTS]


def full(subject, rng):
    return {attribute.name: rng.choice(attribute.values) for attribute in subject.attributes}


def test_eight_subjects_have_different_prompts():
    assert len(SUBJECTS) >= 8 and len(PROMPTS) == len(SUBJECTS)


@pytest.mark.parametrize("subject", NAMED)
def test_captions_are_unique_and_fit_the_tokenizer(subject):
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
def test_attributes_are_read_from_dicebears_record(subject):
    for attribute in subject.attributes:
        for drawn, word in attribute.words.items():
            assert attribute.read({attribute.option: drawn}) == word
            assert attribute.read({attribute.option: [f"#{drawn}"]}) == word
        assert attribute.read({}) == ("none" if attribute.absent else None)
        assert attribute.read({attribute.option: "unknown"}) is None


def test_examples_of_captions():
    by_name = {subject.name: subject for subject in SUBJECTS}
    plant = {"kind": "cactus", "pot colour": "orange", "background": "blue"}
    assert by_name["plant"].caption(plant) == "a cactus in an orange pot on a blue background"
    monster = {"colour": "orange", "eyes": "one eye", "top": "none"}
    expected = "an orange monster with one eye and a bare head"
    assert by_name["monster"].caption(monster) == expected
    assert by_name["stones"].caption({}) == by_name["stones"].prompt == "a pile of stones"


@pytest.mark.parametrize("subject", NAMED)
def test_captions_mention_unusual_values_more_often(subject):
    rng = random.Random(0)
    usual = {a.name: a.ranked[0] for a in subject.attributes}
    rare = {a.name: a.ranked[-1] for a in subject.attributes}
    said = [
        sum(len(say(subject, attributes, rng)) for _ in range(2000)) / (2000 * len(usual))
        for attributes in (usual, rare)
    ]
    assert said[0] == pytest.approx(1 - UNSAID, abs=0.02) and said[1] > said[0] + 0.1


@pytest.mark.parametrize("subject", NAMED)
def test_frequencies_of_long_tailed_and_even_pictures(subject):
    rng = random.Random(0)
    draws = {
        "long_tailed": [draw_long_tailed(subject, {}, rng) for _ in range(3000)],
        "even": [draw_even(subject, rng) for _ in range(3000)],
    }
    for attribute in subject.attributes:
        count = len(attribute.values)
        weights_of = {"long_tailed": zipf(count, ATTRIBUTE_EXPONENT), "even": [1.0] * count}
        for kind, options in draws.items():
            words = [attribute.read(each) for each in options]
            for word, weight in zip(attribute.ranked, weights_of[kind], strict=True):
                expected = weight / sum(weights_of[kind])
                assert words.count(word) / 3000 == pytest.approx(expected, abs=0.04)


def test_a_batch_is_half_long_tailed_and_half_even_with_full_captions(tmp_path):
    stones = next(subject for subject in SUBJECTS if subject.name == "stones")
    shown = {"pilesVariant": "tower", "capVariant": "ball"}
    shown |= {"stoneMidColor": "829bc3", "stoneDeepColor": "614a86"}
    for split, cap in (("long_tailed", "ball"), ("even", "cube")):
        np.savez(tmp_path / f"{split}.npz", subjects=[SUBJECTS.index(stones)] * 3)
        (tmp_path / f"{split}.json").write_text(json.dumps([shown | {"capVariant": cap}] * 3))
    tokenizer = fastrepulse.load_model().tokenizer
    batches = iter(CaptionedPictures(tmp_path, tokenizer, batch_size=200))
    numbers, tokens = next(batches)
    assert numbers.shape == (200,) and tokens.shape == (200, tokenizer.model_max_length)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    full_caption = stones.caption(stones.attributes_of(shown | {"capVariant": "cube"}))
    usual = [t for t, number in zip(texts, numbers.tolist(), strict=True) if number < 3]
    even = [t for t, number in zip(texts, numbers.tolist(), strict=True) if number >= 3]
    assert len(usual) == 100 and even == [full_caption] * 100
    assert 5 <= usual.count("") <= 30 and 20 <= usual.count(stones.prompt) <= 70
    assert not torch.equal(next(batches)[0], numbers)


def test_style_labels_are_shared_by_all_subjects(tmp_path):
    from fastrepulse.default_model.style_classifier import WORDS
    from fastrepulse.default_model.training.style_classifier import UNNAMED, load_labels

    numbers = {subject.name: i for i, subject in enumerate(SUBJECTS)}
    drawn = {
        "plant": {"potColor": ["#7dd3fc"], "potVariant": "round", "backgroundColor": ["#0369a1"]},
        "face": {"faceColor": ["#7dd3fc"], "faceVariant": "circle"},
        "planet": {"planetColor": ["#47a7e7"], "surfaceVariant": "terra"},
    }
    np.savez(tmp_path / "even.npz", subjects=[numbers[name] for name in drawn])
    (tmp_path / "even.json").write_text(json.dumps(list(drawn.values())))
    shown = [
        {a: WORDS[a][i] for a, i in zip(WORDS, row, strict=True) if i != UNNAMED}
        for row in load_labels(tmp_path, "even").tolist()
    ]
    assert shown == [
        {"colour": "blue", "background": "blue", "shape": "round"},
        {"colour": "blue", "shape": "round"},
        {"colour": "blue", "surface": "patchy"},
    ]


@pytest.fixture(scope="module")
def independent_and_repelled():
    settings = {"num_inference_steps": 10, "seed": 0, "progress": False}
    return [
        fastrepulse.sample(list(PROMPTS), 8, **settings, **repulsion).images
        for repulsion in ({"repulsion": None}, {})
    ]


def test_images_show_the_subject_of_the_prompt(independent_and_repelled):
    independent, repelled = independent_and_repelled
    expected = [subject for subject in SUBJECTS for _ in range(8)]
    for images, least in ((independent, 0.95), (repelled, 0.9)):
        hits = [judged is s for (judged, _), s in zip(judge(images), expected, strict=True)]
        assert sum(hits) / len(hits) >= least


def test_the_default_repulsion_makes_samples_more_diverse(
    independent_and_repelled,
):
    independent, repelled = (
        [Figures.of(images[8 * i : 8 * i + 8], s) for i, s in enumerate(SUBJECTS)]
        for images in independent_and_repelled
    )

    def mean(figures, name):
        return sum(getattr(each, name) for each in figures) / len(figures)

    assert mean(independent, "most_common") >= 0.7
    assert mean(repelled, "attribute_vendi") > 1.3 * mean(independent, "attribute_vendi")
    assert mean(repelled, "coverage") > mean(independent, "coverage") + 0.08
    assert mean(repelled, "off_data") < 1.5 * mean(independent, "off_data")


def test_images_show_the_attributes_of_full_captions():
    rng = random.Random(1)
    wanted = [(subject, full(subject, rng)) for subject in SUBJECTS for _ in range(3)]
    captions = [subject.caption(named) for subject, named in wanted]
    how = {"num_inference_steps": 12, "latents": initial_noise(3, len(wanted), (4, 16, 16))}
    images = fastrepulse.sample(captions, 1, repulsion=None, progress=False, **how).images
    hits = [
        drawn.get(name) == word
        for (_, drawn), (_, named) in zip(judge(images), wanted, strict=True)
        for name, word in named.items()
    ]
    assert sum(hits) / len(hits) >= 0.9


def test_compare_refuses_unknown_prompts():
    with pytest.raises(ValueError, match=r"a planet.*'a zebra'"):
        compare("a zebra", 2, 0)


def test_the_autoencoder_reconstructs_held_out_pictures():
    vae = fastrepulse.load_model().vae
    with Image.open(Path(__file__).parents[1] / "data" / "heldout.png") as sheet:
        boxes = [(x, y, x + 64, y + 64) for y in range(0, 512, 64) for x in range(0, 256, 64)]
        pictures = to_tensor([sheet.crop(box) for box in boxes])
    with torch.no_grad():
        again = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (again - pictures).square().mean(dim=(1, 2, 3)))
    assert psnr.mean() >= 30
