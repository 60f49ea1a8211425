// A 64 x 64 tile of sums over k of f(a_ik, b_jk), by 256 threads of 4 x 4 sums each.
#pragma once

#include "launch.cuh"

namespace fastrepulse::gpu {

constexpr int kTile = 64;
constexpr int kTileThreads = 256;
constexpr int kThreadTile = 4;
constexpr int kTileDepth = 16;

struct alignas(16) Float4 {
  float at[4];
};

// A slab of one operand with k as the first index, so that a thread reads its four rows at once.
// The padding keeps rows aligned and spreads the transposed stores over the banks.
using TileOperand = float[kTileDepth][kTile + 4];

struct TilePair {
  TileOperand a, b;
};

struct SquaredDifference {
  __device__ float operator()(float a, float b, float sum) const {
    const float difference = a - b;
    return fmaf(difference, difference, sum);
  }
};

struct Product {
  __device__ float operator()(float a, float b, float sum) const { return fmaf(a, b, sum); }
};

// operand[k][row] = source[row, k], zero outside the `rows` and `depth` that exist.
template <typename T>
__device__ void load_transposed(TileOperand& operand, const T* source, int64_t stride, int64_t rows,
                                int64_t depth) {
  for (int e = threadIdx.x; e < kTile * kTileDepth; e += kTileThreads) {
    const int row = e / kTileDepth, k = e % kTileDepth;
    const bool exists = row < rows && k < depth;
    operand[k][row] = exists ? static_cast<float>(source[row * stride + k]) : 0.0f;
  }
}

// operand[k][column] = source[k, column], zero outside the `depth` and `columns` that exist.
template <typename T>
__device__ void load_direct(TileOperand& operand, const T* source, int64_t stride, int64_t depth,
                            int64_t columns) {
  for (int e = threadIdx.x; e < kTile * kTileDepth; e += kTileThreads) {
    const int k = e / kTile, column = e % kTile;
    const bool exists = k < depth && column < columns;
    operand[k][column] = exists ? static_cast<float>(source[k * stride + column]) : 0.0f;
  }
}

__device__ inline int thread_row() { return threadIdx.x / (kTile / kThreadTile) * kThreadTile; }
__device__ inline int thread_column() { return threadIdx.x % (kTile / kThreadTile) * kThreadTile; }

template <typename Combine>
__device__ void accumulate(const TilePair& tile, int64_t depth, Combine combine,
                           float (&sums)[kThreadTile][kThreadTile]) {
  const int slab = depth < kTileDepth ? static_cast<int>(depth) : kTileDepth;
#pragma unroll 4
  for (int k = 0; k < slab; ++k) {
    const Float4 a = *reinterpret_cast<const Float4*>(&tile.a[k][thread_row()]);
    const Float4 b = *reinterpret_cast<const Float4*>(&tile.b[k][thread_column()]);
#pragma unroll
    for (int r = 0; r < kThreadTile; ++r)
#pragma unroll
      for (int c = 0; c < kThreadTile; ++c) sums[r][c] = combine(a.at[r], b.at[c], sums[r][c]);
  }
}

// Squared distances between the rows of a and b over `depth` coordinates. Differences rather than
// |a|^2 + |b|^2 - 2ab: no cancellation, never negative, exactly 0 for duplicates.
template <typename T>
__device__ void tile_sq_distances(TilePair& tile, const T* a, int64_t a_rows, const T* b,
                                  int64_t b_rows, int64_t stride, int64_t depth,
                                  float (&sums)[kThreadTile][kThreadTile]) {
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    load_transposed(tile.a, a + k, stride, a_rows, depth - k);
    load_transposed(tile.b, b + k, stride, b_rows, depth - k);
    __syncthreads();
    accumulate(tile, depth - k, SquaredDifference{}, sums);
    __syncthreads();
  }
}

}  // namespace fastrepulse::gpu
