"""What the default model can draw: subjects, their attributes, and captions from sparse to full.

A caption names a subject and any subset of its attributes: "a potted plant" names none, "a cactus
in a pink pot with round sides on a blue background" names all four. Attribute words are read from
DiceBear's record of a picture; what is too small to see at 64x64 pixels, or has no plain word, is
not named.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

IMAGE_SIZE = 64


def _words(**variants_by_word: str) -> dict[str, str]:
    """Maps each variant to its word, from `word="variant variant"`."""
    return {v: word for word, variants in variants_by_word.items() for v in variants.split()}


@dataclass(frozen=True)
class Attribute:
    """One nameable property of a subject.

    Args:
        name: The attribute's name, unique within its subject.
        option: DiceBear's key for what was drawn ("ringVariant", "potColor").
        words: The word for each value of the option. A value that is missing here is not named.
        phrase: How a caption says it. "{}" alone is an adjective before the noun; "= {}" replaces
            the noun; anything else follows the noun.
        absent: The whole phrase that says that the component was not drawn, if that is nameable.
    """

    name: str
    option: str
    words: Mapping[str, str]
    phrase: str = "{}"
    absent: str | None = None

    @property
    def values(self) -> tuple[str, ...]:
        """Every nameable value, in a fixed order."""
        named = tuple(dict.fromkeys(self.words.values()))
        return (*named, "none") if self.absent else named

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

    def random_caption(self, attributes: Mapping[str, str], rng: random.Random) -> str:
        """Writes a caption from sparse to full: 1/4 name nothing, 1/4 everything, 1/2 some."""
        how = rng.random()
        keep = 0.0 if how < 0.25 else 1.0 if how < 0.5 else 0.5
        return self.caption({k: v for k, v in attributes.items() if rng.random() < keep})


BRIGHT = _words(
    blue="7dd3fc",
    lavender="a5b4fc c4b5fd",
    pink="f0abfc",
    coral="fda4af fca5a5",
    orange="fdba74",
    yellow="fcd34d",
    lime="bef264",
    mint="6ee7b9 5eead4",
    white="e2e8f0",
)
DEEP = _words(
    blue="0369a1 1d4ed8",
    purple="4338ca 6d28d9",
    magenta="a21caf be185d",
    red="be123c",
    orange="c2410c b45309",
    green="047857 0f766e",
    black="1e293b",
)
DEEP_BACKGROUND = Attribute("background", "backgroundColor", DEEP, "on a {} background")

PLANET = Subject(
    "planet",
    "planets",
    "planet",
    (
        Attribute(
            "surface",
            "surfaceVariant",
            _words(striped="banded belted", cratered="cratered", cracked="cracked", patchy="terra"),
        ),
        Attribute(
            "colour",
            "planetColor",
            _words(
                pink="e27a8c d67cb2",
                orange="e37f64 d88a40",
                golden="c1982a 9fa63b",
                green="74b160 39b789",
                turquoise="00b6af 00b1cf",
                blue="47a7e7 7a9bef",
                purple="a18ee8 c083d2",
            ),
        ),
        Attribute(
            "ring",
            "ringVariant",
            {"thin": "a thin ring", "double": "a double ring", "bold": "a wide ring"},
            "with {}",
            absent="without a ring",
        ),
    ),
)

LANDSCAPE = Subject(
    "landscape",
    "landscape",
    "landscape",
    (
        Attribute(
            "hills",
            "hill4Color",
            _words(
                green="2c5837 445423",
                brown="5c531c 684821 6a3c2c 673d3d",
                blue="30506f 05585f",
            ),
            "with {} hills",
        ),
        Attribute(
            "sun",
            "orbVariant",
            {"sun": "a sun", "ring": "a hollow sun", "glow": "a glowing sun"},
            "with {}",
            absent="with no sun",
        ),
        Attribute(
            "sky",
            "backgroundColor",
            _words(
                blue="e1f3ff d5f3ff d6f8fb daecff",
                yellow="faf0d2 ffebd5",
                pink="ffe7dd ffe4e1",
                lavender="f0e9ff",
            ),
            "under a {} sky",
        ),
    ),
)

PLANT = Subject(
    "plant",
    "sprouts",
    "potted plant",
    (
        Attribute(
            "kind",
            "plantVariant",
            _words(
                seedling="sprout seedling",
                cactus="cactus ball",
                succulent="succulent grass",
                bush="bush",
                flower="flower",
                tulip="tulip",
                palm="palm",
            ),
            "= {}",
        ),
        Attribute("pot colour", "potColor", BRIGHT, "in a {} pot"),
        Attribute(
            "pot shape",
            "potVariant",
            _words(round="round", curved="bowl", rimmed="rim", tapered="taper tub"),
            "with {} sides",
        ),
        DEEP_BACKGROUND,
    ),
)

MONSTER = Subject(
    "monster",
    "critters",
    "monster",
    (
        Attribute(
            "build",
            "bodyVariant",
            _words(thin="tower chimney tilt lean", wide="squat round blob bell"),
        ),
        Attribute("colour", "bodyColor", BRIGHT),
        Attribute(
            "eyes",
            "eyesVariant",
            {
                **dict.fromkeys(("mono", "monoSleepy"), "one eye"),
                **dict.fromkeys(("trio", "threeRow"), "three eyes"),
                "four": "four eyes",
            },
            "with {}",
        ),
        Attribute(
            "top",
            "topVariant",
            _words(
                horns="horns hornsIn hornsSmall",
                ears="earsRound earsPointy earsDroop",
                antennae="antenna antennae",
                spikes="spike spikes",
            ),
            "with {}",
            absent="with a bare head",
        ),
        DEEP_BACKGROUND,
    ),
)

ROBOT = Subject(
    "robot",
    "voxel-bot",
    "robot",
    (
        Attribute(
            "colour",
            "bodyColor",
            _words(
                white="e9ecef",
                grey="aeb8c2",
                blue="74c0fc",
                mint="63e6be",
                yellow="ffd43b",
                pink="ff9d9d",
                purple="b6a6f5",
                green="69db7c",
            ),
        ),
        Attribute(
            "top",
            "topVariant",
            {
                "antenna": "an antenna",
                "twin": "two antennae",
                "dish": "a dish",
                "fin": "a fin",
                "siren": "a siren",
            },
            "with {}",
            absent="with a bare head",
        ),
        Attribute(
            "background",
            "backgroundColor",
            _words(
                blue="b6e3f4", purple="c0aede", lavender="d1d4f9", pink="ffd5dc", peach="ffdfbf"
            ),
            "on a {} background",
        ),
    ),
)

FACE = Subject(
    "face",
    "moods",
    "face",
    (
        Attribute(
            "mood",
            "mouthVariant",
            _words(
                smiling="smile wide",
                laughing="bigSmile smileOpen laugh",
                sad="frown",
                surprised="open gasp",
            ),
        ),
        Attribute(
            "shape",
            "faceVariant",
            _words(round="circle hexagon", square="squircle softSquare", wide="wide", tall="tall"),
        ),
        Attribute("colour", "faceColor", BRIGHT),
        Attribute(
            "eyes",
            "eyesVariant",
            _words(winking="wink", angry="angry", sleepy="sleepy calm", squinting="squint"),
            "with {} eyes",
        ),
        DEEP_BACKGROUND,
    ),
)

CLAY = Subject(
    "clay",
    "clay",
    "clay creature",
    (
        Attribute(
            "build",
            "bodyVariant",
            _words(thin="column stack lean", wide="loaf squat slug boulder"),
        ),
        Attribute(
            "colour",
            "bodyColor",
            _words(
                orange="c4795c d99277",
                yellow="e0bd6a cf9f52",
                green="a8b37e 8ba06b",
                turquoise="83b0a4",
                blue="86a5c3",
                purple="9793bd ab8bbd",
                pink="cd8ea6",
                grey="b3a696",
            ),
        ),
        Attribute("eyes", "eyesVariant", {"mono": "one eye", "trio": "three eyes"}, "with {}"),
        Attribute(
            "top",
            "topVariant",
            _words(
                horns="horns hornsSmall",
                ears="ears",
                antennae="antenna",
                spikes="spikes",
            )
            | {"loop": "a loop", "curl": "a curl", "peak": "a peak"},
            "with {}",
            absent="with a bare head",
        ),
    ),
)

STONES = Subject(
    "stones",
    "stack",
    "pile of stones",
    (
        Attribute(
            "height",
            "pilesVariant",
            _words(low="pair boulder", tall="five tower four fourLean fourBelly"),
        ),
        Attribute(
            "top",
            "capVariant",
            {
                "ball": "a ball",
                "egg": "an egg",
                "dome": "a dome",
                "cube": "a cube",
                "drop": "a drop",
            },
            "topped by {}",
        ),
        Attribute(
            "upper stones",
            "stoneMidColor",
            _words(
                red="c7877c",
                brown="b29472 9c9e72",
                green="78a68d 78a2aa",
                blue="829bc3",
                purple="a18fc4",
                pink="c87db0",
            ),
            "with {} stones",
        ),
        Attribute(
            "lower stones",
            "stoneDeepColor",
            _words(
                red="7c483f",
                brown="675440 595a40",
                green="445f50 435d62",
                blue="3f5882",
                purple="614a86",
                pink="764566",
            ),
            "over {} stones",
        ),
    ),
)

SUBJECTS = (PLANET, LANDSCAPE, PLANT, MONSTER, ROBOT, FACE, CLAY, STONES)
