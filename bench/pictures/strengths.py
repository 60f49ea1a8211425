"""Draws docs/strength.jpg: sixteen images of one prompt at strengths from zero to too high.

python -m bench.pictures.strengths
python -m bench.pictures.strengths --model turbo --out docs/turbo.jpg
"""

import argparse
from pathlib import Path

import fastrepulse
from fastrepulse import Repulsion
from fastrepulse.demo import side_by_side

STRENGTHS = (0.0, 0.2, 0.4, 0.8, 1.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    docs = Path(__file__).resolve().parents[2] / "docs"
    parser.add_argument("--prompt", default="a monster")
    parser.add_argument("--model", help="Name of a shipped model; the small one by default.")
    parser.add_argument("--out", type=Path, default=docs / "strength.jpg")
    args = parser.parse_args()
    grids = [
        fastrepulse.sample(
            args.prompt,
            16,
            model=args.model,
            repulsion=Repulsion(strength=strength),
            seed=0,
            progress=False,
        ).grid()
        for strength in STRENGTHS
    ]
    titles = [f"strength {strength:g}" for strength in STRENGTHS]
    side_by_side(tuple(grids), tuple(titles), zoom=1).save(args.out, quality=90)


if __name__ == "__main__":
    main()
