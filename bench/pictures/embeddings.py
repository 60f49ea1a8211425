"""Draws docs/embeddings.jpg: one row of particles per embedding, all from the same noise.

    python -m bench.pictures.embeddings --efficientnet efficientnet_lite0.safetensors

The strengths were chosen by eye, so that the images stay clean.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import fastrepulse
from fastrepulse import Repulsion
from fastrepulse.embeddings import (
    Gram,
    average_colour,
    efficientnet_lite0,
    image,
    product,
)
from fastrepulse.sampling.output import image_grid

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROMPT = "a potted plant"
N = 6
NAMES = ("channel_mean", "decoded_mean", "halves", "thirds", "pooled")
NAMES += ("style_classifier", "style_thirds", "random_cnn", "gram", "latent")


def rows(efficientnet: Path | None) -> Iterator[tuple[str, Repulsion | None]]:
    """Yields each row's label and repulsion."""
    yield "independent", None
    for name in NAMES:
        yield name, Repulsion(name)
    decode = fastrepulse.load_model().decode
    like = fastrepulse.sample(PROMPT, 16, repulsion=None, seed=99, progress=False).latents
    yield (
        "product of thirds\nand random_cnn",
        Repulsion(product("thirds", "random_cnn", like=like), 0.5),
    )
    yield "Gram of\nstyle_classifier", Repulsion(Gram("style_classifier"))
    yield "image: average\ncolour", Repulsion(image(average_colour, decode))
    if efficientnet is not None:
        encoder = efficientnet_lite0(efficientnet)
        yield "image: EfficientNet-\nLite0", Repulsion(image(encoder, decode), 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--efficientnet", type=Path, help="See docs/embeddings.md")
    parser.add_argument("--out", type=Path, default=DOCS / "embeddings.jpg")
    args = parser.parse_args()
    labels, images = [], []
    for label, repulsion in rows(args.efficientnet):
        labels.append(label)
        result = fastrepulse.sample(PROMPT, N, repulsion=repulsion, seed=0, progress=False)
        images += result.images
    sheet(labels, images, N).save(args.out, quality=90, subsampling=0, optimize=True)


def sheet(labels: list[str], images: list[Image.Image], columns: int) -> Image.Image:
    """Returns rows of images with a label at the left of each."""
    grid = image_grid(images, columns)
    left = 180
    page = Image.new("RGB", (left + grid.width, grid.height), "white")
    page.paste(grid, (left, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
    height = grid.height / len(labels)
    for i, label in enumerate(labels):
        middle = (left - 8, (i + 0.5) * height)
        draw.multiline_text(middle, label, fill="black", font=font, anchor="rm", align="right")
    return page


if __name__ == "__main__":
    main()
