"""Captions of rendered pictures: a subject and any subset of its attributes.

"a potted plant" names no attribute. "a cactus in a pink pot with round sides on a blue background"
names all four. Attributes are read from DiceBear's record of a picture. Details that are too small
for 64x64 pixels, or that no plain word describes, are not named.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One nameable property of a subject.

    Args:
        name: The attribute's name, unique within its subject.
        option: DiceBear's key of the option ("ringVariant", "potColor").
        words: The word for each value of the option. Values without a word are not named.
        usual: The most common value. Going round the `values` from there, they become rarer.
        phrase: Template for the caption. "{}" alone is an adjective before the noun, "= {}"
            replaces the noun, and any other phrase follows the noun.
        absent: Phrase for a component that was not drawn; None if this is not named.
    """

    name: str
    option: str
    words: Mapping[str, str]
    usual: str
    phrase: str = "{}"
    absent: str | None = None

    @property
    def values(self) -> tuple[str, ...]:
        """All values, in a fixed order."""
        named = tuple(dict.fromkeys(self.words.values()))
        return (*named, "none") if self.absent else named

    @property
    def ranked(self) -> tuple[str, ...]:
        """All values, the most common first."""
        start = self.values.index(self.usual)
        return self.values[start:] + self.values[:start]

    @property
    def component(self) -> str:
        """DiceBear's component of the option: "ring" for "ringVariant"."""
        return self.option.removesuffix("Variant").removesuffix("Color")

    def variants(self, word: str) -> list[str]:
        """Returns the option's values for a word, such as both shades of blue."""
        return [variant for variant, own in self.words.items() if own == word]

    def read(self, options: Mapping) -> str | None:
        """Returns the word for the drawn value, or None if it has no word."""
        drawn = options.get(self.option)
        if isinstance(drawn, list):
            drawn = drawn[0] if drawn else None
        if drawn is None:
            return "none" if self.absent else None
        return self.words.get(drawn.removeprefix("#"))

    def say(self, word: str) -> str:
        """Returns the caption's phrase for a value."""
        if word == "none":
            assert self.absent is not None
            return self.absent
        return self.phrase.format(word)


@dataclass(frozen=True)
class Subject:
    """One kind of picture: its noun, DiceBear style and attributes in the order of the caption."""

    name: str
    style: str
    noun: str
    attributes: tuple[Attribute, ...]

    @property
    def prompt(self) -> str:
        """The sparse prompt, without attributes."""
        return self.caption({})

    def attributes_of(self, options: Mapping) -> dict[str, str]:
        """Reads the attributes from DiceBear's record of a picture."""
        read = ((attribute.name, attribute.read(options)) for attribute in self.attributes)
        return {name: word for name, word in read if word is not None}

    def caption(self, named: Mapping[str, str]) -> str:
        """Returns the caption that names these attributes."""
        before, noun, after = [], self.noun, []
        for attribute in self.attributes:
            if attribute.name not in named:
                continue
            phrase = attribute.say(named[attribute.name])
            if attribute.phrase.startswith("= "):
                noun = phrase.removeprefix("= ")
            elif attribute.phrase == "{}":
                before.append(phrase)
            else:
                after.append(phrase)
        for i in range(1, len(after)):
            if after[i].startswith("with ") and after[i - 1].startswith(("with ", "and ")):
                after[i] = after[i].replace("with ", "and ", 1)
        return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(["a", *before, noun, *after]))


def vocabulary(subjects: Iterable[Subject]) -> frozenset[str]:
    """Returns the words of all captions."""
    words = {"and"}
    for subject in subjects:
        words.update(subject.prompt.split())
        for attribute in subject.attributes:
            for value in attribute.values:
                words.update(subject.caption({attribute.name: value}).split())
    return frozenset(words)
