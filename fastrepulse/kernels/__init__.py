"""Pairwise operations over embeddings, by the fastest kernels that serve."""

from fastrepulse.kernels.ops import (
    median_bandwidth,
    median_rbf_repulsion,
    median_sq_distance,
    rbf_repulsion,
)

__all__ = ["median_bandwidth", "median_rbf_repulsion", "median_sq_distance", "rbf_repulsion"]
