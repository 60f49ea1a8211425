// Median bandwidth, force and similarity of few particles in one cooperative launch.
//
// Every block owns a slice of d. The block sums the squared distances over its slice and waits for
// the other blocks. Then it adds up the sums of all slices, finds the median, and computes the
// force on its own slice.
#pragma once

#include <cooperative_groups.h>

#include <algorithm>

#include "radix_select.cuh"
#include "rbf_kernel.cuh"
#include "sq_distance_parts.cuh"

namespace fastrepulse::gpu {

constexpr int kMaxMedianParticles = 128;
constexpr int kMedianThreads = 512;
constexpr int kWarp = 32;

// Layout of the shared memory. `distances` has N x stride elements.
struct MedianShared {
  Selection selection;
  uint64_t chunks[kChunks];
  uint32_t histogram[kBins];
  float sums[kMedianThreads];
  alignas(16) float distances[1];
};

// Length of a row of distances: N rounded up, so that a thread reads four at once.
__host__ __device__ constexpr int median_stride(int n) {
  return static_cast<int>(ceil_div(n, kThreadTile)) * kThreadTile;
}

__host__ __device__ constexpr size_t median_shared_size(int n) {
  return offsetof(MedianShared, distances) + sizeof(float) * n * median_stride(n);
}

static_assert(median_shared_size(kMaxMedianParticles) <= 99 * 1024, "the limit of a block on sm_86");

// Partial squared distances of a 4 x 4 tile of pairs. The lanes of a warp lie side by side along d.
template <typename T>
__device__ void warp_sq_distances(const T* x, int n, int64_t d, int row, int column, int64_t begin,
                                  int64_t end, float* partial) {  // [N, N]
  const int lane = threadIdx.x % kWarp;
  float sums[kThreadTile][kThreadTile] = {};
  for (int64_t k = begin + lane; k < end; k += kWarp) {
    float a[kThreadTile], b[kThreadTile];
#pragma unroll
    for (int r = 0; r < kThreadTile; ++r) {
      a[r] = row + r < n ? static_cast<float>(x[(row + r) * d + k]) : 0.0f;
      b[r] = column + r < n ? static_cast<float>(x[(column + r) * d + k]) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kThreadTile; ++r)
#pragma unroll
      for (int c = 0; c < kThreadTile; ++c)
        sums[r][c] = SquaredDifference{}(a[r], b[c], sums[r][c]);
  }
#pragma unroll
  for (int r = 0; r < kThreadTile; ++r)
#pragma unroll
    for (int c = 0; c < kThreadTile; ++c) {
      for (int offset = kWarp / 2; offset > 0; offset /= 2)
        sums[r][c] += __shfl_xor_sync(0xffffffffu, sums[r][c], offset);
      if (lane == 0 && row + r < n && column + c < n)
        partial[(row + r) * n + column + c] = sums[r][c];
    }
}

// Adds up the parts of every distance. Each pair is read once and stored twice. Returns the
// particles' variance, the mean of ||x_i - mean x||^2.
inline __device__ float gather_distances(const float* partials, int parts, int n,
                                         MedianShared& shared) {
  const int stride = median_stride(n);
  float total = 0;
  for (int e = threadIdx.x; e < n * stride; e += kMedianThreads) {
    const int i = e / stride, j = e % stride;
    if (j >= n) {
      shared.distances[e] = 0;
    } else if (i <= j) {
      const float sq_distance = sum_parts(partials + i * n + j, parts, n * n);
      shared.distances[e] = shared.distances[j * stride + i] = sq_distance;
      total += sq_distance;
    }
  }
  return block_sum(total, shared.sums) / (static_cast<float>(n) * n);
}

// The lower median over i < j.
inline __device__ float select_median(int n, MedianShared& shared) {
  const int stride = median_stride(n);
  if (threadIdx.x == 0) shared.selection = {0, static_cast<uint64_t>((n * (n - 1) / 2 - 1) / 2)};
  for (int digit = 0; digit < kDigits; ++digit) {
    for (int bin = threadIdx.x; bin < kBins; bin += kMedianThreads) shared.histogram[bin] = 0;
    __syncthreads();
    DigitCounter counter(shared.histogram, digit, shared.selection.prefix);
    for (int e = threadIdx.x; e < n * stride; e += kMedianThreads)
      if (e / stride < e % stride && e % stride < n) counter.count(shared.distances[e]);
    counter.flush();
    __syncthreads();
    select_digit(shared.histogram, digit, shared.chunks, shared.selection);
  }
  return __uint_as_float(shared.selection.prefix);
}

template <typename T>
__global__ void __launch_bounds__(kMedianThreads)
    median_rbf_repulsion(const T* x, int n, int64_t d, int64_t slice,
                         float* partials,     // [blocks, N, N]
                         float* force,        // [N, d]
                         float* similarity,   // [N]
                         float* bandwidth) {  // scalar
  auto& shared = *reinterpret_cast<MedianShared*>(shared_memory);
  const int64_t begin = blockIdx.x * slice, end = begin + slice < d ? begin + slice : d;
  const int stride = median_stride(n), tiles = stride / kThreadTile;
  float* partial = partials + static_cast<int64_t>(blockIdx.x) * n * n;
  for (int t = threadIdx.x / kWarp; t < tiles * tiles; t += kMedianThreads / kWarp)
    if (t / tiles <= t % tiles)
      warp_sq_distances(x, n, d, t / tiles * kThreadTile, t % tiles * kThreadTile, begin, end,
                        partial);
  cooperative_groups::this_grid().sync();

  const float variance = gather_distances(partials, gridDim.x, n, shared);
  const float median = select_median(n, shared);
  const float h = bandwidth_of(median / logf(static_cast<float>(n)),
                               static_cast<float>(kBandwidthFloor) * variance);
  const RbfKernel kernel(h);
  for (int e = threadIdx.x; e < n * stride; e += kMedianThreads)
    shared.distances[e] = kernel(shared.distances[e]);
  __syncthreads();

  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) *bandwidth = h;
    for (int i = threadIdx.x; i < n; i += kMedianThreads) {
      float total = 0;
      for (int j = 0; j < n; ++j) total += shared.distances[j * stride + i];
      similarity[i] = total;
    }
  }
  // A thread computes four particles in one dimension. Differences make centring unnecessary.
  const int64_t width = end - begin;
  for (int64_t e = threadIdx.x; e < tiles * width; e += kMedianThreads) {
    const int first = static_cast<int>(e / width) * kThreadTile;
    const int64_t k = begin + e % width;
    float row[kThreadTile], sums[kThreadTile] = {};
#pragma unroll
    for (int r = 0; r < kThreadTile; ++r)
      row[r] = first + r < n ? static_cast<float>(x[(first + r) * d + k]) : 0.0f;
    for (int j = 0; j < n; ++j) {
      const float other = static_cast<float>(x[j * d + k]);
      const Float4 weight = *reinterpret_cast<const Float4*>(&shared.distances[j * stride + first]);
#pragma unroll
      for (int r = 0; r < kThreadTile; ++r) sums[r] = fmaf(weight.at[r], row[r] - other, sums[r]);
    }
#pragma unroll
    for (int r = 0; r < kThreadTile; ++r)
      if (first + r < n) force[(first + r) * d + k] = kernel.force_scale() * sums[r];
  }
}

// Size of the workspace in floats.
constexpr int64_t median_workspace_size(int n, int64_t blocks) {
  return blocks * n * n;
}

// Number of blocks: slices of at least 256 dimensions, and no more than the GPU holds at once.
inline int64_t median_blocks(int64_t d, int64_t capacity) {
  return std::max<int64_t>(1, std::min({ceil_div(d, 256), capacity, int64_t{64}}));
}

template <typename T, typename Launch>
void run_median_rbf_repulsion(Launch& launch, const T* x, int n, int64_t d, int64_t blocks,
                              float* partials, float* force, float* similarity,
                              float* bandwidth) {
  const int64_t slice = ceil_div(ceil_div(d, blocks), kWarp) * kWarp;
  launch.cooperative(median_rbf_repulsion<T>, dim3(blocks), kMedianThreads, median_shared_size(n),
                     x, n, d, slice, partials, force, similarity, bandwidth);
}

}  // namespace fastrepulse::gpu
