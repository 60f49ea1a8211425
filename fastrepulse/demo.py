"""Compares independent and repelled samples of one prompt of the shipped model."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fastrepulse.checks import check_choice
from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.files import whole_file
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.models import SHIPPED
from fastrepulse.sampling.results import SampleResult
from fastrepulse.sampling.sample import sample


@dataclass(frozen=True)
class Comparison:
    """Two sets of images from the same noise, their measures, and a sheet of both."""

    independent: SampleResult
    repelled: SampleResult
    figures: tuple[Figures, Figures]
    sheet: Image.Image


def compare(
    prompt: str,
    num_particles: int,
    seed: int,
    guidance_scale: float | None = None,
    strength: float = Repulsion().strength,
    model: str | None = None,
) -> Comparison:
    """Samples a sparse prompt of a shipped model with and without repulsion.

    Args:
        prompt: The prompt, one of `PROMPTS`.
        num_particles: Number of images N >= 1 of each set.
        seed: Seed of the noise; both sets start from the same noise.
        guidance_scale: Guidance scale; by default the one that the model was made for.
        strength: Strength of the repulsion.
        model: Name of a shipped model; by default the small one.

    Raises:
        ValueError: If the prompt is not one of `PROMPTS`, or the model is none of `SHIPPED`.
    """
    check_choice("model", model or "small", tuple(SHIPPED))
    if prompt not in PROMPTS:
        raise ValueError(f"prompt must be one of {', '.join(PROMPTS)}, got {prompt!r}")
    subject = PROMPTS[prompt]
    repulsion = Repulsion(strength=strength)
    independent, repelled = (
        sample(
            prompt,
            num_particles,
            model=model,
            repulsion=how,
            guidance_scale=guidance_scale,
            seed=seed,
        )
        for how in (None, repulsion)
    )
    figures = Figures.of(independent.images, subject), Figures.of(repelled.images, subject)
    titles = (f"{prompt}: independent", "repelled, same noise")
    grids = (independent.grid(), repelled.grid())
    return Comparison(independent, repelled, figures, side_by_side(grids, titles))


def side_by_side(
    images: tuple[Image.Image, ...], titles: tuple[str, ...], zoom: int = 2, gap: int = 24
) -> Image.Image:
    """Places images side by side, each below its title."""
    font = ImageFont.load_default(size=18)
    images = tuple(p.resize((p.width * zoom, p.height * zoom), 0) for p in images)
    width = sum(p.width for p in images) + gap * (len(images) + 1)
    sheet = Image.new("RGB", (width, max(p.height for p in images) + 3 * gap), "white")
    draw = ImageDraw.Draw(sheet)
    left = gap
    for image, title in zip(images, titles, strict=True):
        draw.text((left, gap // 2), title, fill="black", font=font)
        sheet.paste(image, (left, 2 * gap))
        left += image.width + gap
    return sheet


def save(comparison: Comparison, folder: Path) -> Path:
    """Writes both sets and the sheet to a folder and returns the path of the sheet.

    An earlier comparison in the folder is replaced.
    """
    path = folder / "independent-vs-repelled.png"
    earlier = path.exists()
    comparison.independent.save(folder / "independent", overwrite=earlier)
    comparison.repelled.save(folder / "repelled", overwrite=earlier)
    with whole_file(path) as partial:
        comparison.sheet.save(partial)
    return path
