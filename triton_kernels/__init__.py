"""Triton kernels of the operations in `fastrepulse.kernels`, for CUDA and ROCm devices."""

from fastrepulse.triton_kernels.median_sq_distance import median_sq_distance_kernel
from fastrepulse.triton_kernels.rbf_repulsion import rbf_repulsion_kernel

__all__ = ["median_sq_distance_kernel", "rbf_repulsion_kernel"]
