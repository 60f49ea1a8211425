// The exact rank-th smallest of |x_i - x_j|^2 over i < j, one digit of its bits per pass.
//
// Every pass recomputes the tiles of pairs, with the same bits, and stores no distance. Few
// particles with wide rows give too few tiles to fill a GPU. Their distances are computed once,
// split over d, and stored.
#pragma once

#include "radix_select.cuh"
#include "sq_distance_parts.cuh"
#include "tile.cuh"

namespace fastrepulse::gpu {

using Histogram = uint32_t[kBins];

struct MedianWorkspace {
  Selection selection;
  unsigned long long histograms[kDigits][kBins];
};

struct HistogramShared {
  TilePair tile;
  Histogram histogram;
};

static __global__ void __launch_bounds__(kTileThreads)
    start_selection(int64_t rank, MedianWorkspace* workspace) {
  for (int bin = threadIdx.x; bin < kDigits * kBins; bin += kTileThreads)
    workspace->histograms[bin / kBins][bin % kBins] = 0;
  if (threadIdx.x == 0) workspace->selection = {0, static_cast<uint64_t>(rank)};
}

__device__ inline DigitCounter start_counting(Histogram& histogram, int digit,
                                              const MedianWorkspace* workspace) {
  for (int bin = threadIdx.x; bin < kBins; bin += kTileThreads) histogram[bin] = 0;
  __syncthreads();
  return {histogram, digit, workspace->selection.prefix};
}

// Adds a block's counts to the total counts.
__device__ inline void publish(const Histogram& histogram, unsigned long long* total) {
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kTileThreads)
    if (const unsigned long long count = histogram[bin]) atomicAdd(&total[bin], count);
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    histogram_sq_distance(const T* x, int64_t n, int64_t d, int digit, MedianWorkspace* workspace) {
  auto& shared = shared_as<HistogramShared>();
  DigitCounter counter = start_counting(shared.histogram, digit, workspace);
  // The upper triangle of tiles, folded into a rectangle with half as many rows: the reversed rows
  // of the lower half fill the free places of the upper half
  const int64_t tiles = ceil_div(n, 2 * kTile) * 2, width = tiles + 1;
  for (int64_t t = blockIdx.x; t < tiles / 2 * width; t += gridDim.x) {
    const int64_t fold_row = t / width, fold_column = t % width;
    const bool upper = fold_column > fold_row;
    const int64_t row = (upper ? fold_row : tiles - 1 - fold_row) * kTile;
    const int64_t column = (upper ? fold_column - 1 : tiles - 1 - fold_column) * kTile;
    if (column >= n) continue;
    float sums[kThreadTile][kThreadTile] = {};
    tile_sq_distances(shared.tile, x + row * d, n - row, x + column * d, n - column, d, d, sums);
    for (int r = 0; r < kThreadTile; ++r)
      for (int c = 0; c < kThreadTile; ++c) {
        const int64_t i = row + thread_row() + r, j = column + thread_column() + c;
        if (i < j && j < n) counter.count(sums[r][c]);
      }
    counter.flush();
  }

  publish(shared.histogram, workspace->histograms[digit]);
}

// Adds up the parts of stored distances, and counts one digit of the sums.
static __global__ void __launch_bounds__(kTileThreads)
    histogram_parts(const float* parts,  // [splits, N, N]
                    int64_t n, int64_t splits, int digit, MedianWorkspace* workspace) {
  auto& histogram = shared_as<Histogram>();
  DigitCounter counter = start_counting(histogram, digit, workspace);
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x)
    for (int64_t j = i + 1 + threadIdx.x; j < n; j += kTileThreads)
      counter.count(sum_parts(parts + i * n + j, splits, n * n));
  counter.flush();
  publish(histogram, workspace->histograms[digit]);
}

static __global__ void __launch_bounds__(kTileThreads)
    find_digit(int digit, MedianWorkspace* workspace, float* value) {
  auto& chunks = shared_as<uint64_t[kChunks]>();
  select_digit(workspace->histograms[digit], digit, chunks, workspace->selection);
  // After the last digit the prefix is the whole value
  if (threadIdx.x == 0) *value = __uint_as_float(workspace->selection.prefix);
}

// Finds one value. Pointers are to device memory.
template <typename T>
struct MedianSqDistance {
  const T* x;  // [N, d]
  int64_t n, d;

  bool kept() const { return d > kTile && n <= 2048; }

  // In bytes, at most 17 MB. Stored distances follow the MedianWorkspace.
  int64_t workspace_size() const {
    const int64_t parts = kept() ? split().parts * n * n : 0;
    return sizeof(MedianWorkspace) + sizeof(float) * parts;
  }

  template <typename Launch>
  void run(Launch& launch, int64_t rank, MedianWorkspace* workspace, float* value) const {
    float* parts = reinterpret_cast<float*>(workspace + 1);
    const int64_t side = ceil_div(n, kTile), tiles = side * (side + 1) / 2;
    // Few enough tiles per block that 32-bit counts cannot overflow
    const int64_t blocks = std::max(std::min(tiles, 4 * kTargetBlocks), ceil_div(tiles, 1 << 19));
    launch(start_selection, dim3(1), kTileThreads, 0, rank, workspace);
    if (kept())
      launch(sq_distance_parts<T>, dim3(side, side, split().parts), kTileThreads, sizeof(TilePair),
             x, x, n, n, d, split().length, parts);
    for (int digit = 0; digit < kDigits; ++digit) {
      if (kept())
        launch(histogram_parts, dim3(std::min(n, kTargetBlocks)), kTileThreads, sizeof(Histogram),
               parts, n, split().parts, digit, workspace);
      else
        launch(histogram_sq_distance<T>, dim3(blocks), kTileThreads, sizeof(HistogramShared), x, n,
               d, digit, workspace);
      launch(find_digit, dim3(1), kTileThreads, sizeof(uint64_t[kChunks]), digit, workspace, value);
    }
  }

 private:
  Split split() const { return sq_distance_split(n, n, d); }
};

}  // namespace fastrepulse::gpu
