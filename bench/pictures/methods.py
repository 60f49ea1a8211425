"""Draws docs/methods.jpg: one row of particles per method, all from the same noise.

Where the evaluation has them, the strengths give about equal Vendi scores.

python -m bench.pictures.methods
"""

import argparse
from pathlib import Path

import fastrepulse
from bench.pictures.embeddings import sheet
from fastrepulse import Correction, Repulsion
from fastrepulse.methods import (
    CADS,
    SPARKE,
    SPELL,
    SVGD,
    IntervalGuidance,
    MeanScore,
    ParticleGuidance,
    VendiGuidance,
)

N = 8
LANGEVIN = Correction("langevin", step_size=1.0, window=(8.0, 1.0))
ROWS = {
    "independent": {"repulsion": None},
    "Repulsion": {"repulsion": Repulsion()},
    "Repulsion\n(random_cnn)": {"repulsion": Repulsion("random_cnn")},
    "Particle Guidance": {"repulsion": ParticleGuidance(113.0)},
    "SVGD": {"repulsion": SVGD(0.1)},
    "SPELL": {"repulsion": SPELL(0.539)},
    "SPARKE": {"repulsion": SPARKE(487.0)},
    "Vendi guidance": {"repulsion": VendiGuidance(949.0)},
    "CADS": {"repulsion": CADS(0.0867)},
    "interval guidance": {"repulsion": IntervalGuidance((1.0, 0.0))},
    "mean score": {"repulsion": MeanScore(0.783)},
    "Langevin steps": {"repulsion": None, "corrections": [LANGEVIN]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    docs = Path(__file__).resolve().parents[2] / "docs"
    parser.add_argument("--out", type=Path, default=docs / "methods.jpg")
    args = parser.parse_args()
    images = []
    for settings in ROWS.values():
        result = fastrepulse.sample("a potted plant", N, seed=0, progress=False, **settings)
        images += result.images
    sheet(list(ROWS), images, N).save(args.out, quality=85)


if __name__ == "__main__":
    main()
