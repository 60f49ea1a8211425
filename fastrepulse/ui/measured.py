"""The diversity of images, as a line of text."""

from collections.abc import Sequence

from PIL import Image

from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.metrics.diversity import vendi_score
from fastrepulse.metrics.spaces import resized, to_pictures
from fastrepulse.models import DEFAULT_MODEL, Model

THUMBNAIL = 8


def measured(images: Sequence[Image.Image], prompt: str, model: Model) -> str:
    """Describes how many different images a set holds, as Markdown.

    For the shipped model's own prompts, the judge reads the attributes of the images. For other
    prompts and models, the figure is the Vendi score of thumbnails.
    """
    count = len(images)
    if model.name == str(DEFAULT_MODEL) and prompt in PROMPTS:
        figures = Figures.of(images, PROMPTS[prompt])
        return (
            f"**{figures.attribute_vendi:.1f}** different of {count} images, "
            f"{figures.coverage:.0%} of all attribute values, "
            f"{figures.accuracy:.0%} show {prompt}"
        )
    rows = resized(to_pictures(images), THUMBNAIL, (0.5,) * 3, (0.5,) * 3).flatten(1)
    return f"**{vendi_score(rows):.2f}** different of {count} images (Vendi score of thumbnails)"
