// The RBF kernel k = exp(-distance / h) and the constants that depend on h, in float32.
#pragma once

#include <cfloat>

#include "launch.cuh"

namespace fastrepulse::gpu {

struct RbfKernel {
  float inverse_bandwidth;

  // The limit keeps the weight at distance 0 from being NaN for a tiny bandwidth. A NaN bandwidth
  // stays NaN, which fminf would drop.
  __device__ explicit RbfKernel(float bandwidth) : inverse_bandwidth(1.0f / bandwidth) {
    if (inverse_bandwidth > FLT_MAX / 4) inverse_bandwidth = FLT_MAX / 4;
  }

  __device__ float operator()(float sq_distance) const {
    constexpr float kLog2E = 1.44269504f;
    return exp2f(sq_distance * (-kLog2E * inverse_bandwidth));
  }

  __device__ float force_scale() const { return 2 * inverse_bandwidth; }
};

}  // namespace fastrepulse::gpu
