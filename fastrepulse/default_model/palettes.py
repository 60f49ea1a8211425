"""Words that several subjects share: colours, backgrounds, and what counts as two eyes."""

from fastrepulse.default_model.captions import Attribute


def words(**variants_by_word: str) -> dict[str, str]:
    """Maps each variant to its word, from `word="variant variant"`."""
    return {v: word for word, variants in variants_by_word.items() for v in variants.split()}


BRIGHT = words(
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
DEEP = words(
    blue="0369a1 1d4ed8",
    purple="4338ca 6d28d9",
    magenta="a21caf be185d",
    red="be123c",
    orange="c2410c b45309",
    green="047857 0f766e",
    black="1e293b",
)

MONSTER_PAIRS = [
    "round",
    "dots",
    "bigPupils",
    "sideeye",
    "inward",
    "uneven",
    "happy",
    "closedLine",
    "wink",
    "squint",
    "wide",
    "sleepy",
    "angry",
    "close",
]
CLAY_PAIRS = [
    "googly",
    "even",
    "big",
    "tiny",
    "side",
    "outward",
    "inward",
    "dots",
    "happy",
    "wink",
    "down",
    "up",
    "pinprick",
]


def background(usual: str) -> Attribute:
    """Returns the attribute of a deep background colour, of which one is usual."""
    return Attribute("background", "backgroundColor", DEEP, usual, "on a {} background")
