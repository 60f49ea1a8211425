"""Frequencies of attribute values in the training pictures: long-tailed or even.

Real text-to-image data are long-tailed, and their captions mention unusual details. A sparse prompt
therefore stands for the usual values. Guidance sharpens this preference, and so these models draw
near-duplicates. Half of the shipped model's training pictures are drawn in the same way. The other
half shows every value equally often and teaches the model to draw rare values on request.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastrepulse.default_model.captions import Attribute, Subject

ATTRIBUTE_EXPONENT = 1.4
"""The exponent s of p(value) ~ 1 / rank^s over an attribute's values, the usual value first."""

DETAIL_EXPONENT = 1.5
"""The same for details without words: exact shades, shapes, mouths, patterns."""

UNSAID, CAPTION_EXPONENT = 0.85, 0.8
"""A caption leaves out an attribute of rank r with probability UNSAID / r^t.

A sparse prompt thus stands for p(value) ~ 1 / rank^(s + t). Guidance of scale w leads away from the
empty prompt and sharpens this towards 1 / rank^(s + w t).
"""

Value = TypeVar("Value")


def zipf(count: int, exponent: float) -> list[float]:
    """Returns the weights 1 / rank^s of ranks 1 to `count`."""
    return [rank**-exponent for rank in range(1, count + 1)]


def draw_even(subject: Subject, rng: random.Random) -> dict[str, Any]:
    """Draws the attributes uniformly; DiceBear draws the details."""
    options: dict[str, Any] = {}
    for attribute in subject.attributes:
        word = rng.choice(attribute.values)
        options |= _options(attribute, word, rng.choice(attribute.variants(word) or [""]))
    return options


def draw_long_tailed(
    subject: Subject, details: Mapping[str, Sequence[str]], rng: random.Random
) -> dict[str, Any]:
    """Draws attributes and details independently by Zipf's law.

    Args:
        subject: The subject.
        details: Values of the style's options that are not attributes, the usual value first.
        rng: Random generator.

    Returns:
        Options for DiceBear.
    """
    options: dict[str, Any] = {}
    for attribute in subject.attributes:
        word = _pick(attribute.ranked, ATTRIBUTE_EXPONENT, rng)
        variants = attribute.variants(word)
        variant = _pick(variants, DETAIL_EXPONENT, rng) if variants else ""
        options |= _options(attribute, word, variant)
    for option, values in details.items():
        options[option] = [_pick(values, DETAIL_EXPONENT, rng)]
    return options


def say(subject: Subject, attributes: Mapping[str, str], rng: random.Random) -> dict[str, str]:
    """Draws the attributes that a caption mentions; unusual values are mentioned more often."""
    ranks = {a.name: a.ranked for a in subject.attributes}
    return {
        name: word
        for name, word in attributes.items()
        if rng.random() >= UNSAID / (1 + ranks[name].index(word)) ** CAPTION_EXPONENT
    }


def _options(attribute: Attribute, word: str, variant: str) -> dict[str, Any]:
    """Returns DiceBear's options for a value."""
    probability = f"{attribute.component}Probability"
    if word == "none":
        return {probability: 0}
    if attribute.option.endswith("Color"):
        return {attribute.option: [variant]}
    return {attribute.option: [variant], probability: 100}


def _pick(values: Sequence[Value], exponent: float, rng: random.Random) -> Value:
    return rng.choices(values, zipf(len(values), exponent))[0]
