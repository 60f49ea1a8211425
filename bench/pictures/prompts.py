"""Draws docs/prompts.jpg: sixteen independent and sixteen repelled samples of every prompt.

python -m bench.pictures.prompts
"""

import argparse
from pathlib import Path

import fastrepulse
from fastrepulse.default_model.figures import PROMPTS
from fastrepulse.demo import side_by_side
from fastrepulse.sampling.output import image_grid

N = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    docs = Path(__file__).resolve().parents[2] / "docs"
    parser.add_argument("--out", type=Path, default=docs / "prompts.jpg")
    args = parser.parse_args()
    grids = [
        image_grid(fastrepulse.sample(list(PROMPTS), N, seed=0, **settings).images, columns=N)
        for settings in ({"repulsion": None}, {})
    ]
    side_by_side(tuple(grids), ("independent", "repelled"), zoom=1).save(args.out, quality=85)


if __name__ == "__main__":
    main()
