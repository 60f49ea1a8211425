"""How different a set of pictures is, and how good."""

from fastrepulse.metrics.clip import clip_score
from fastrepulse.metrics.diversity import (
    mean_pairwise_similarity,
    rke,
    vendi_score,
    vendi_score_of_kernel,
)
from fastrepulse.metrics.quality import (
    Neighbourhood,
    frechet_distance,
    kernel_distance,
    neighbourhood,
)
from fastrepulse.metrics.rows import SmallSetWarning

__all__ = [
    "Neighbourhood",
    "SmallSetWarning",
    "clip_score",
    "frechet_distance",
    "kernel_distance",
    "mean_pairwise_similarity",
    "neighbourhood",
    "rke",
    "vendi_score",
    "vendi_score_of_kernel",
]
