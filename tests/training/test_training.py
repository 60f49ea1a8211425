"""The pictures, captions and labels that the shipped models are trained on."""

import json
import random

import numpy as np
import pytest
import torch

import fastrepulse
from fastrepulse.default_model.style_classifier import WORDS
from fastrepulse.default_model.subjects import SUBJECTS
from helpers.checkout import import_from_checkout

CaptionedPictures = import_from_checkout("training.captions").CaptionedPictures
frequencies = import_from_checkout("training.frequencies")
style_classifier = import_from_checkout("training.style_classifier")

NAMED = [pytest.param(subject, id=subject.name) for subject in SUBJECTS]


@pytest.mark.parametrize("subject", NAMED)
def test_captions_mention_unusual_values_more_often(subject):
    rng = random.Random(0)
    usual = {a.name: a.ranked[0] for a in subject.attributes}
    rare = {a.name: a.ranked[-1] for a in subject.attributes}
    said = [
        sum(len(frequencies.say(subject, attributes, rng)) for _ in range(2000))
        / (2000 * len(usual))
        for attributes in (usual, rare)
    ]
    assert said[0] == pytest.approx(1 - frequencies.UNSAID, abs=0.02) and said[1] > said[0] + 0.1


@pytest.mark.parametrize("subject", NAMED)
def test_frequencies_of_long_tailed_and_even_pictures(subject):
    rng = random.Random(0)
    draws = {
        "long_tailed": [frequencies.draw_long_tailed(subject, {}, rng) for _ in range(3000)],
        "even": [frequencies.draw_even(subject, rng) for _ in range(3000)],
    }
    for attribute in subject.attributes:
        count = len(attribute.values)
        weights_of = {
            "long_tailed": frequencies.zipf(count, frequencies.ATTRIBUTE_EXPONENT),
            "even": [1.0] * count,
        }
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
    numbers = {subject.name: i for i, subject in enumerate(SUBJECTS)}
    drawn = {
        "plant": {"potColor": ["#7dd3fc"], "potVariant": "round", "backgroundColor": ["#0369a1"]},
        "face": {"faceColor": ["#7dd3fc"], "faceVariant": "circle"},
        "planet": {"planetColor": ["#47a7e7"], "surfaceVariant": "terra"},
    }
    np.savez(tmp_path / "even.npz", subjects=[numbers[name] for name in drawn])
    (tmp_path / "even.json").write_text(json.dumps(list(drawn.values())))
    shown = [
        {a: WORDS[a][i] for a, i in zip(WORDS, row, strict=True) if i != style_classifier.UNNAMED}
        for row in style_classifier.load_labels(tmp_path, "even").tolist()
    ]
    assert shown == [
        {"colour": "blue", "background": "blue", "shape": "round"},
        {"colour": "blue", "shape": "round"},
        {"colour": "blue", "surface": "patchy"},
    ]
