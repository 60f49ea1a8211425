"""The shipped model: captions, tokenizer and image quality."""

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.default_model.judge import judge, to_tensor
from fastrepulse.default_model.subjects import SUBJECTS
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
