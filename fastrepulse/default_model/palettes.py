"""Words that several subjects share."""

from collections.abc import Mapping

from fastrepulse.default_model.captions import Attribute


def words(text: str) -> dict[str, str]:
    """Maps each DiceBear variant to its word, from "word: variant variant; word: variant"."""
    entries = (entry.split(": ") for entry in text.split("; "))
    return {variant: word for word, variants in entries for variant in variants.split()}


BRIGHT = words(
    "blue: 7dd3fc; lavender: a5b4fc c4b5fd; pink: f0abfc; coral: fda4af fca5a5; orange: fdba74; "
    "yellow: fcd34d; lime: bef264; mint: 6ee7b9 5eead4; white: e2e8f0"
)
DEEP = words(
    "blue: 0369a1 1d4ed8; purple: 4338ca 6d28d9; magenta: a21caf be185d; red: be123c; "
    "orange: c2410c b45309; green: 047857 0f766e; black: 1e293b"
)


def background(usual: str, colours: Mapping[str, str] = DEEP) -> Attribute:
    """Returns the attribute of a background colour with this usual value."""
    return Attribute("background", "backgroundColor", colours, usual, "on a {} background")


def eyes(text: str) -> Attribute:
    """Returns the attribute of the number of eyes."""
    return Attribute("eyes", "eyesVariant", words(text), "two eyes", "with {}")


def top(text: str, usual: str) -> Attribute:
    """Returns the attribute of what is on the head."""
    return Attribute("top", "topVariant", words(text), usual, "with {}", "with a bare head")
