// The RBF kernel k = exp(-distance / h) and what follows from h, in float32.
#pragma once

#include <cfloat>

#include "launch.cuh"

namespace fastrepulse::gpu {

struct RbfKernel {
  float inverse_bandwidth;

  // Finite however small h is: infinity times a distance of 0 would be NaN
  __device__ explicit RbfKernel(float bandwidth)
      : inverse_bandwidth(fminf(1.0f / bandwidth, FLT_MAX / 4)) {}

  __device__ float operator()(float sq_distance) const {
    constexpr float kLog2E = 1.44269504f;
    return exp2f(sq_distance * (-kLog2E * inverse_bandwidth));
  }

  __device__ float force_scale() const { return 2 * inverse_bandwidth; }
};

}  // namespace fastrepulse::gpu
