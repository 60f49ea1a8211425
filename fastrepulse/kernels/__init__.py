"""Pairwise operations over embeddings, by the fastest kernels that serve."""

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
