"""Draws docs/ten-thousand.jpg: ten thousand particles of one prompt in one joint run.

    python -m bench.pictures.ten_thousand

Prints the time, the memory, and how different, clean and right the images are.
"""

import argparse
import colorsys
import resource
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

import fastrepulse
from bench.common import environment
from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.sampling.output import image_grid

PROMPT = "a potted plant"
ACROSS = 100
SIDE = 12


def hue(image: Image.Image) -> tuple[float, float]:
    """Returns hue and lightness of an image's mean colour, the sort key."""
    red, green, blue = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    h, lightness, _ = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    return round(h * ACROSS), lightness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    docs = Path(__file__).resolve().parents[2] / "docs"
    parser.add_argument("--out", type=Path, default=docs / "ten-thousand.jpg")
    parser.add_argument("-n", "--num-particles", type=int, default=ACROSS**2)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        images = fastrepulse.sample(
            PROMPT, args.num_particles, num_inference_steps=args.steps, seed=0, out=folder
        ).images
        minutes = (time.perf_counter() - start) / 60
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        some = list(images[:: max(1, args.num_particles // 200)])
        small = [image.resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    small.sort(key=hue)
    image_grid(small, columns=ACROSS, gap=0).save(args.out, quality=75, optimize=True)
    figures = Figures.of(some, PROMPTS[PROMPT])
    print(
        f"{args.num_particles} particles, {args.steps} steps: {minutes:.1f} min, {peak / 1024:.0f} "
        f"MB in all, {before / 1024:.0f} before. {environment()} "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    print(f"of {len(some)} of them: {figures}")


if __name__ == "__main__":
    main()
