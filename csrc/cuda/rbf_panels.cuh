// The RBF kernel matrix of wide rows, one panel at a time in a bounded workspace. The steps are:
// the squared distances, split over d; the weights and their row sums; the product with y, split
// over the columns.
#pragma once

#include "rbf_kernel.cuh"
#include "sq_distance_parts.cuh"

namespace fastrepulse::gpu {

constexpr int kRowSumThreads = 256;
using RowSums = float[kRowSumThreads];

// Turns the distances of a panel into w_j k_ij, stored over the first part. A block has one row.
static __global__ void __launch_bounds__(kRowSumThreads)
    panel_weights(const float* weights, const float* bandwidth, int64_t rows, int64_t columns,
                  int64_t splits, bool add,
                  float* panel,         // [splits, rows, columns]
                  float* similarity) {  // [rows]
  const RbfKernel kernel(*bandwidth);
  float* row = panel + static_cast<int64_t>(blockIdx.x) * columns;
  float total = 0;
  for (int64_t j = threadIdx.x; j < columns; j += kRowSumThreads) {
    const float sq_distance = sum_parts(row + j, splits, rows * columns);
    row[j] = (weights ? weights[j] : 1.0f) * kernel(sq_distance);
    total += row[j];
  }
  const float sum = block_sum(total, shared_as<RowSums>());
  if (threadIdx.x == 0) similarity[blockIdx.x] = (add ? similarity[blockIdx.x] : 0.0f) + sum;
}

// The panel times y. blockIdx.z is the part of the columns.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    panel_attraction(const float* panel,  // [rows, columns]
                     const T* y, int64_t rows, int64_t columns, int64_t d,
                     int64_t columns_per_split, bool add,
                     float* attraction) {  // [splits, rows, d]
  auto& tile = shared_as<TilePair>();
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t dimension = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t begin = blockIdx.z * columns_per_split;
  const int64_t end = begin + columns_per_split < columns ? begin + columns_per_split : columns;
  float sums[kThreadTile][kThreadTile] = {};
  for (int64_t j = begin; j < end; j += kTileDepth) {
    load_transposed(tile.a, panel + row * columns + j, columns, rows - row, end - j);
    load_direct(tile.b, y + j * d + dimension, d, end - j, d - dimension);
    __syncthreads();
    accumulate(tile, end - j, Product{}, sums);
    __syncthreads();
  }
  float* out = attraction + static_cast<int64_t>(blockIdx.z) * rows * d;
  for (int r = 0; r < kThreadTile; ++r)
    for (int c = 0; c < kThreadTile; ++c) {
      const int64_t i = row + thread_row() + r, k = dimension + thread_column() + c;
      if (i < rows && k < d) out[i * d + k] = (add ? out[i * d + k] : 0.0f) + sums[r][c];
    }
}

// Sizes of panels and splits for rows of d > 64.
struct WidePlan {
  int64_t rows, columns;  // of a panel
  Split depth;            // of the distances over d
  Split sums;             // of the products with y over the columns

  WidePlan(int64_t n, int64_t m, int64_t d, int64_t panel_columns)
      : rows(std::min<int64_t>(n, 1024)),
        columns(std::min(m, panel_columns)),
        depth(sq_distance_split(rows, columns, d)),
        sums(columns, ceil_div(rows, kTile) * ceil_div(d, kTile), 128, kTileDepth) {}

  int64_t panel_size() const { return depth.parts * rows * columns; }
  int64_t workspace_size(int64_t d) const {
    return panel_size() + (sums.parts > 1 ? sums.parts * rows * d : 0);
  }
};

}  // namespace fastrepulse::gpu
