"""Long prompts, unknown words and negative prompts."""

import copy
import logging
from dataclasses import replace

import pytest
import torch

import fastrepulse
from fastrepulse import models
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.models.prompts import tokenize
from helpers.tolerances import SAME_COMPUTATION

RTOL, ATOL = SAME_COMPUTATION
LONG = "a planet " + " ".join(["blue"] * 30) + " green"


def draw(prompt="a planet", n=1, **arguments):
    settings = {"num_inference_steps": 2, "seed": 0, "progress": False, "repulsion": None}
    return fastrepulse.sample(prompt, n, **{**settings, **arguments})


def test_a_warning_names_text_that_is_cut_off(caplog):
    draw(LONG)
    (record,) = caplog.records
    assert "35 tokens and the text encoder takes 24" in record.getMessage()
    assert record.getMessage().endswith("blue green'")
    assert record.getMessage().count("blue") == 10


@pytest.mark.parametrize("pads", ["left", "right"])
@pytest.mark.parametrize("cuts", ["left", "right"])
def test_tokens_are_those_of_the_tokenizer(pads, cuts):
    model = models.load_model()
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.padding_side, tokenizer.truncation_side = pads, cuts
    prompts = [LONG, "a planet", ""]
    expected = tokenizer(prompts, padding="max_length", truncation=True, max_length=24)
    ids, mask = tokenize(tokenizer, model.text_encoder, prompts, 1)
    assert ids.tolist() == expected.input_ids and mask.tolist() == expected.attention_mask


def test_a_cut_off_negative_prompt_is_warned_about(caplog):
    draw(negative_prompt=LONG)
    assert "cut off" in caplog.text


def test_a_prompt_of_the_longest_length_is_not_warned_about(caplog):
    limit = " ".join(["blue"] * 20)  # 24 tokens with "a planet", start and end
    draw(f"a planet {limit}")
    assert not caplog.records


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_the_words_of_all_captions_are_known(subject, caplog):
    models.load_model().encode_prompts([subject.prompt])
    for attribute in subject.attributes:
        for value in attribute.values:
            models.load_model().encode_prompts([subject.caption({attribute.name: value})])
    assert not caplog.records


def test_a_warning_names_unknown_words(caplog):
    caplog.set_level(logging.WARNING)
    draw("A cat in a blue pot")
    (record,) = caplog.records
    assert "never learnt 'cat';" in record.getMessage()
    for subject in SUBJECTS:
        assert subject.prompt in record.getMessage()


def test_another_model_warns_about_no_word(caplog, tmp_path):
    import shutil

    shutil.copytree(models.DEFAULT_MODEL, tmp_path / "copy")
    draw("a cat", model=tmp_path / "copy")
    assert not caplog.records


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", ["a \0 planet", "a \ud83c planet", ["a planet", "\udfff"]])
def test_text_that_cannot_be_encoded_is_refused(name, text):
    arguments = {"prompt": "a planet", name: text}
    with pytest.raises(ValueError, match=f"^{name} must be text without NUL"):
        draw(**arguments)


def test_a_tokenizer_without_a_length_limit():
    shipped = models.load_model()
    tokenizer = copy.deepcopy(shipped.tokenizer)
    tokenizer.model_max_length = int(1e30)
    other = replace(shipped, tokenizer=tokenizer)
    expected = shipped.encode_prompts(["a planet"]).tokens
    torch.testing.assert_close(other.encode_prompts(["a planet"]).tokens, expected)


def test_each_prompt_has_its_negative_prompt():
    prompts, negatives = ["a planet", "a robot", "a planet"], ["blue", "", "a planet"]
    together = draw(prompts, 2, negative_prompt=negatives)
    alone = [
        draw(prompt, 2, negative_prompt=negative).latents
        for prompt, negative in zip(prompts, negatives, strict=True)
    ]
    torch.testing.assert_close(together.latents, torch.cat(alone), rtol=RTOL, atol=ATOL)
    assert together.settings["negative_prompt"] == negatives


@pytest.mark.parametrize(
    ("negative", "error", "named"),
    [
        (["x"], ValueError, "for each of 2 prompts, got 1"),
        ([], ValueError, "negative_prompt must be .* empty list"),
        ([1, 2], TypeError, "negative_prompt must be a string or a list of strings"),
        (3, TypeError, "negative_prompt .* got 3"),
    ],
)
def test_bad_negative_prompts_are_refused(negative, error, named):
    with pytest.raises(error, match=named):
        draw(["a planet", "a robot"], negative_prompt=negative)


def test_a_long_prompt_in_chunks_is_not_cut_off(caplog):
    model = models.load_model()
    longest = model.text_encoder.config.max_position_embeddings
    words = [f"{colour} pot" for colour in ("blue", "red", "green", "white") for _ in range(4)]
    prompt = "a potted plant in a " + " and a ".join(words)
    chunks = model.chunks_of([prompt, "a planet"])
    assert chunks > 2
    with torch.no_grad():
        together = model.encode_prompts([prompt, "a planet"], chunks).tokens
        ids = model.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        pieces = [model.tokenizer.decode(ids[i : i + longest - 2]) for i in range(0, len(ids), 22)]
        alone = model.encode_prompts(pieces).tokens
        short = model.encode_prompts(["a planet"]).tokens
    torch.testing.assert_close(together[0], alone.flatten(0, 1), rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(together[1, :longest], short[0], rtol=RTOL, atol=ATOL)
    assert not caplog.records
    chunked = draw(prompt, long_prompts="chunks")
    assert not caplog.records
    assert (chunked.latents - draw(prompt).latents).abs().max() > 1e-2
    assert "cut off" in caplog.text


def test_chunks_change_nothing_for_a_short_prompt():
    chunked = draw(long_prompts="chunks")
    torch.testing.assert_close(chunked.latents, draw().latents, rtol=RTOL, atol=ATOL)
    assert chunked.settings["long_prompts"] == "chunks"
