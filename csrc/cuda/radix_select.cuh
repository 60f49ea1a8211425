// Selects by rank among non-negative float32 values, one digit a pass (see median.h). The histogram
// of a pass counts the values that share the digits found so far.
#pragma once

#include "../median.h"
#include "launch.cuh"

namespace fastrepulse::gpu {

// The sign bit is 0. Triton's kernel has digits of the same widths: 11, 11 and 9 bits.
using FloatDigits = Digits<31, 11>;
constexpr int kDigits = FloatDigits::kPasses;
constexpr int kBins = FloatDigits::kBins;
constexpr int kChunks = 64;

struct Selection {
  uint32_t prefix;  // the digits found so far
  uint64_t rank;    // from 0, among the values with this prefix
};

// Counts values by their digit. A run of equal digits costs one atomic operation, so that many ties
// do not wait for each other at one bin.
class DigitCounter {
 public:
  __device__ DigitCounter(uint32_t* histogram, int digit, uint32_t prefix)
      : histogram_(histogram),
        shift_(FloatDigits::shift(digit)),
        width_(FloatDigits::width(digit)),
        prefix_(prefix) {}

  __device__ void count(float value) {
    // Without the sign, so that a NaN counts as the largest
    const uint32_t bits = __float_as_uint(value) & 0x7fffffffu;
    if (bits >> (shift_ + width_) != prefix_) return;
    const uint32_t bin = bits >> shift_ & ((1u << width_) - 1);
    if (bin != bin_) {
      flush();
      bin_ = bin;
    }
    ++run_;
  }

  __device__ void flush() {
    if (run_ > 0) atomicAdd(&histogram_[bin_], run_);
    run_ = 0;
  }

 private:
  uint32_t* histogram_;
  int shift_, width_;
  uint32_t prefix_, bin_ = 0, run_ = 0;
};

// Finds the digit that holds the rank. Every thread of the block must call it.
template <typename Count>
__device__ void select_digit(const Count* histogram, int digit, uint64_t (&chunks)[kChunks],
                             Selection& selection) {
  const int chunk_size = (1 << FloatDigits::width(digit)) / kChunks;
  for (int c = threadIdx.x; c < kChunks; c += blockDim.x) {
    chunks[c] = 0;
    for (int b = 0; b < chunk_size; ++b) chunks[c] += histogram[c * chunk_size + b];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    uint64_t rank = selection.rank;
    int chunk = 0;
    while (chunk < kChunks - 1 && rank >= chunks[chunk]) rank -= chunks[chunk++];
    int bin = chunk * chunk_size;
    const int last = bin + chunk_size - 1;
    while (bin < last && rank >= histogram[bin]) rank -= histogram[bin++];
    selection.prefix = selection.prefix << FloatDigits::width(digit) | static_cast<uint32_t>(bin);
    selection.rank = rank;
  }
  __syncthreads();
}

}  // namespace fastrepulse::gpu
