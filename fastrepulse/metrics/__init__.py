"""Measures of a set of images: how diverse it is, and how close to reference images."""

from fastrepulse.metrics.diversity import (
    mean_pairwise_similarity,
    vendi_score,
    vendi_score_of_kernel,
)
from fastrepulse.metrics.patches import PatchReference
from fastrepulse.metrics.quality import (
    Neighbourhood,
    frechet_distance,
    kernel_distance,
    neighbourhood,
)
from fastrepulse.metrics.rows import SmallSetWarning
from fastrepulse.metrics.spaces import SPACES, Backbone, Distance, distances, to_pictures

__all__ = [
    "SPACES",
    "Backbone",
    "Distance",
    "Neighbourhood",
    "PatchReference",
    "SmallSetWarning",
    "distances",
    "frechet_distance",
    "kernel_distance",
    "mean_pairwise_similarity",
    "neighbourhood",
    "to_pictures",
    "vendi_score",
    "vendi_score_of_kernel",
]
