// Selecting by rank among float32 values that are not negative: they order as their bits do, so
// the bits of the answer are found a digit at a time, from a histogram of that digit among the
// values that share the digits found before.
#pragma once

#include "launch.cuh"

namespace fastrepulse::gpu {

// Bits 30-20, 19-10 and 9-0; the sign is 0.
constexpr int kDigits = 3;
constexpr int kBins = 2048;  // of the widest digit
constexpr int kChunks = 64;

struct Selection {
  uint32_t prefix;  // the digits found so far
  uint64_t rank;    // 0-based, among the values that begin with them
};

__device__ constexpr int digit_shift(int digit) { return 20 - 10 * digit; }
__device__ constexpr int digit_width(int digit) { return digit == 0 ? 11 : 10; }

// Counts values by their digit; a run of equal digits costs one atomic operation, which is what
// keeps heavy ties from queueing for one bin.
class DigitCounter {
 public:
  __device__ DigitCounter(uint32_t* histogram, int digit, uint32_t prefix)
      : histogram_(histogram),
        shift_(digit_shift(digit)),
        width_(digit_width(digit)),
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

// Finds the digit that holds the rank; every thread of the block calls it.
template <typename Count>
__device__ void select_digit(const Count* histogram, int digit, uint64_t (&chunks)[kChunks],
                             Selection& selection) {
  const int chunk_size = (1 << digit_width(digit)) / kChunks;
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
    selection.prefix = selection.prefix << digit_width(digit) | static_cast<uint32_t>(bin);
    selection.rank = rank;
  }
  __syncthreads();
}

}  // namespace fastrepulse::gpu
