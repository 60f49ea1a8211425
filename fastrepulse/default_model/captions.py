"""How a picture becomes a caption: attributes read from what was drawn, said from sparse to full.

A caption names a subject and any subset of its attributes: "a potted plant" names none, "a cactus
in a pink pot with round sides on a blue background" names all four. Attribute words are read from
DiceBear's record of a picture; what is too small to see at 64x64 pixels, or has no plain word, is
not named.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One nameable property of a subject.

    Args:
        name: The attribute's name, unique within its subject.
        option: DiceBear's key for what was drawn ("ringVariant", "potColor").
        words: The word for each value of the option. A value that is missing here is not named.
        usual: The value that most pictures of the world show; the others are the rarer the further
            behind it they stand among the `values`, counted round.
        phrase: How a caption says it. "{}" alone is an adjective before the noun; "= {}" replaces
            the noun; anything else follows the noun.
        absent: The whole phrase that says that the component was not drawn, if that is nameable.
    """

    name: str
    option: str
    words: Mapping[str, str]
    usual: str
    phrase: str = "{}"
    absent: str | None = None

    @property
    def values(self) -> tuple[str, ...]:
        """Every nameable value, in a fixed order."""
        named = tuple(dict.fromkeys(self.words.values()))
        return (*named, "none") if self.absent else named

    @property
    def ranked(self) -> tuple[str, ...]:
        """Every value, the most common one first."""
        start = self.values.index(self.usual)
        return self.values[start:] + self.values[:start]

    @property
    def component(self) -> str:
        """DiceBear's name of what the option is about: "ring" of "ringVariant"."""
        return self.option.removesuffix("Variant").removesuffix("Color")

    def variants(self, word: str) -> list[str]:
        """Returns the options that a word stands for, such as both shades of blue."""
        return [variant for variant, own in self.words.items() if own == word]

    def read(self, options: Mapping) -> str | None:
        """Returns the word for what was drawn, or None where it has no name."""
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
    """One kind of picture, with the noun that names it and its attributes in caption order."""

    name: str
    style: str
    noun: str
    attributes: tuple[Attribute, ...]

    @property
    def prompt(self) -> str:
        """The sparse prompt, which names the subject alone."""
        return self.caption({})

    def attributes_of(self, options: Mapping) -> dict[str, str]:
        """Reads every nameable attribute from DiceBear's record of a picture."""
        read = ((attribute.name, attribute.read(options)) for attribute in self.attributes)
        return {name: word for name, word in read if word is not None}

    def caption(self, named: Mapping[str, str]) -> str:
        """Writes the caption that names exactly the given attributes."""
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
    """Returns every word of every caption."""
    words = {"and"}
    for subject in subjects:
        words.update(subject.prompt.split())
        for attribute in subject.attributes:
            for value in attribute.values:
                words.update(subject.caption({attribute.name: value}).split())
    return frozenset(words)
