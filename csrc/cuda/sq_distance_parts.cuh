// A matrix of squared distances between wide rows, in parts that each sum over a stretch of d. So a
// small matrix still has enough blocks to fill a GPU.
#pragma once

#include "tile.cuh"

namespace fastrepulse::gpu {

// blockIdx.z is the part of d.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    sq_distance_parts(const T* x, const T* y, int64_t rows, int64_t columns, int64_t d,
                      int64_t depth_per_split,
                      float* parts) {  // [splits, rows, columns]
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t begin = blockIdx.z * depth_per_split;
  const int64_t depth = d - begin < depth_per_split ? d - begin : depth_per_split;
  float sums[kThreadTile][kThreadTile] = {};
  tile_sq_distances(shared_as<TilePair>(), x + row * d + begin, rows - row, y + column * d + begin,
                    columns - column, d, depth, sums);
  float* out = parts + static_cast<int64_t>(blockIdx.z) * rows * columns;
  for (int r = 0; r < kThreadTile; ++r)
    for (int c = 0; c < kThreadTile; ++c) {
      const int64_t i = row + thread_row() + r, j = column + thread_column() + c;
      if (i < rows && j < columns) out[i * columns + j] = sums[r][c];
    }
}

// An element's parts lie `stride` apart.
__device__ inline float sum_parts(const float* parts, int64_t count, int64_t stride) {
  float sum = 0;
  for (int64_t p = 0; p < count; ++p) sum += parts[p * stride];
  return sum;
}

inline Split sq_distance_split(int64_t rows, int64_t columns, int64_t d) {
  return {d, ceil_div(rows, kTile) * ceil_div(columns, kTile), 128, kTileDepth};
}

}  // namespace fastrepulse::gpu
