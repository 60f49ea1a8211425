// Helpers of all kernels: division of work among blocks, shared memory, sums over a block.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace fastrepulse::gpu {

// Enough thread blocks to fill any GPU. The number is fixed, so that every GPU sums in the same
// order.
constexpr int64_t kTargetBlocks = 512;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Splits a sum over `total` terms that `blocks` blocks would compute. The parts give kTargetBlocks
// blocks in total, unless they would be shorter than `shortest`.
struct Split {
  int64_t length;  // of every part but the last; a multiple of `multiple`
  int64_t parts;

  Split(int64_t total, int64_t blocks, int64_t shortest, int64_t multiple) {
    const int64_t most = std::min(kTargetBlocks / blocks, ceil_div(total, shortest));
    length = ceil_div(ceil_div(total, std::max<int64_t>(most, 1)), multiple) * multiple;
    parts = ceil_div(total, length);
  }
};

alignas(16) extern __shared__ unsigned char shared_memory[];

template <typename Layout>
__device__ Layout& shared_as() {
  static_assert(sizeof(Layout) <= 48 * 1024, "more needs an opt-in at launch");
  return *reinterpret_cast<Layout*>(shared_memory);
}

// The sum of the values of a block's threads, always in the same order.
template <unsigned kThreads>
__device__ float block_sum(float value, float (&sums)[kThreads]) {
  sums[threadIdx.x] = value;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  return sums[0];
}

}  // namespace fastrepulse::gpu
