"""How different pictures are, in a line that a person reads."""

from collections.abc import Sequence

from PIL import Image

from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.metrics.diversity import vendi_score
from fastrepulse.metrics.spaces import resized, to_pictures
from fastrepulse.models import DEFAULT_MODEL, Model

THUMBNAIL = 8


def measured(images: Sequence[Image.Image], prompt: str, model: Model) -> str:
    """Says how many different pictures there are among some.

    The shipped model's judge reads attributes off the pictures of its own prompts; of others it is
    the Vendi score of thumbnails.
    """
    count = len(images)
    if model.name == str(DEFAULT_MODEL) and prompt in PROMPTS:
        figures = Figures.of(images, PROMPTS[prompt])
        return (
            f"**{figures.attribute_vendi:.1f}** different of {count}, "
            f"{figures.coverage:.0%} of all kinds and colours, "
            f"{figures.accuracy:.0%} show {prompt}"
        )
    rows = resized(to_pictures(images), THUMBNAIL, (0.5,) * 3, (0.5,) * 3).flatten(1)
    return f"**{vendi_score(rows):.2f}** different of {count} (Vendi score of thumbnails)"
