"""Pairwise operations over embeddings, computed by the fastest backend that is available."""

from fastrepulse.kernels.ops import (
    median_bandwidth,
    median_rbf_repulsion,
    median_sq_distance,
    rbf_repulsion,
)
from fastrepulse.kernels.shared import shared_median_bandwidth

__all__ = [
    "median_bandwidth",
    "median_rbf_repulsion",
    "median_sq_distance",
    "rbf_repulsion",
    "shared_median_bandwidth",
]
