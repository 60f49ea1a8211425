"""Measures of a set of images: how diverse it is, and how close to reference images."""

from fastrepulse.metrics.diversity import (
    mean_pairwise_similarity,
    vendi_score,
    vendi_score_of_kernel,
)
from fastrepulse.metrics.patches import PatchReference
from fastrepulse.metrics.quality import frechet_distance, kernel_distance, recall_and_coverage
from fastrepulse.metrics.rows import SmallSetWarning
from fastrepulse.metrics.spaces import SPACES, Distance, distances, to_pictures

__all__ = [
    "SPACES",
    "Distance",
    "PatchReference",
    "SmallSetWarning",
    "distances",
    "frechet_distance",
    "kernel_distance",
    "mean_pairwise_similarity",
    "recall_and_coverage",
    "to_pictures",
    "vendi_score",
    "vendi_score_of_kernel",
]
