"""How often the training pictures show what: a world with a usual and a rare, and an even one.

Real text-to-image data are long-tailed, and their captions mention what is unusual, so that a bare
prompt means the usual. Guidance sharpens exactly that, and this is why such models repeat
themselves. The default model learns from pictures that are drawn in the same way; as many that show
every value equally often teach it to draw the rare ones when they are asked for.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastrepulse.default_model.captions import Attribute, Subject

ATTRIBUTE_EXPONENT = 1.4
"""Of the Zipf law p(value) ~ 1 / rank^s over an attribute's values, the usual one first."""

DETAIL_EXPONENT = 1.5
"""The same for what has no words: exact shades, shapes, mouths, patterns."""

UNSAID, CAPTION_EXPONENT = 0.85, 0.8
"""A caption leaves out an attribute of rank r with probability UNSAID / r^t.

So what a bare prompt means is p(value) ~ 1 / rank^(s + t), and guidance of scale w, which leads
away from what an empty prompt means, sharpens it towards 1 / rank^(s + w t).
"""

Value = TypeVar("Value")


def zipf(count: int, exponent: float) -> list[float]:
    """Returns the weights 1 / rank^s of ranks 1 to `count`."""
    return [rank**-exponent for rank in range(1, count + 1)]


def draw_even(subject: Subject, rng: random.Random) -> dict[str, Any]:
    """Draws every value of every attribute equally often, and leaves the details to DiceBear."""
    options: dict[str, Any] = {}
    for attribute in subject.attributes:
        word = rng.choice(attribute.values)
        options |= _options(attribute, word, rng.choice(attribute.variants(word) or [""]))
    return options


def draw_long_tailed(
    subject: Subject, details: Mapping[str, Sequence[str]], rng: random.Random
) -> dict[str, Any]:
    """Draws the usual often and the rest the rarer the further down its rank, all independently.

    Args:
        subject: What to draw.
        details: The values of every option of the style that no attribute names, the usual first.
        rng: The source of randomness.

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
    """Returns the attributes that a caption mentions: the more unusual, the more often."""
    ranks = {a.name: a.ranked for a in subject.attributes}
    return {
        name: word
        for name, word in attributes.items()
        if rng.random() >= UNSAID / (1 + ranks[name].index(word)) ** CAPTION_EXPONENT
    }


def _options(attribute: Attribute, word: str, variant: str) -> dict[str, Any]:
    """Returns the options that make DiceBear draw a value."""
    probability = f"{attribute.component}Probability"
    if word == "none":
        return {probability: 0}
    if attribute.option.endswith("Color"):
        return {attribute.option: [variant]}
    return {attribute.option: [variant], probability: 100}


def _pick(values: Sequence[Value], exponent: float, rng: random.Random) -> Value:
    return rng.choices(values, zipf(len(values), exponent))[0]
