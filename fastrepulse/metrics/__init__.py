"""How different a set of pictures is, and how good."""

from fastrepulse.metrics.clip import clip_score
from fastrepulse.metrics.diversity import (
    mean_pairwise_similarity,
    rke,
    vendi_score,
    vendi_score_of_kernel,
)
from fastrepulse.metrics.inception import inception_backbone
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
    "clip_score",
    "distances",
    "frechet_distance",
    "inception_backbone",
    "kernel_distance",
    "mean_pairwise_similarity",
    "neighbourhood",
    "rke",
    "to_pictures",
    "vendi_score",
    "vendi_score_of_kernel",
]
