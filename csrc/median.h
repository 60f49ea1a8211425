// The digits of the exact median and the bandwidth, for the CPU and for CUDA.
#pragma once

#ifdef __CUDACC__
#define FASTREPULSE_HOST_DEVICE __host__ __device__
#else
#define FASTREPULSE_HOST_DEVICE
#endif

namespace fastrepulse {

// Non-negative floats have the same order as their bits. So an order statistic is found digit by
// digit from the highest: each pass counts the next digit of the values that share the digits found
// so far. All digits have `kWidth` bits except the last, which has the remaining bits.
template <int kBits, int kWidth>
struct Digits {
  static constexpr int kPasses = (kBits + kWidth - 1) / kWidth;
  static constexpr int kBins = 1 << kWidth;

  FASTREPULSE_HOST_DEVICE static constexpr int width(int pass) {
    return pass + 1 < kPasses ? kWidth : kBits - kWidth * (kPasses - 1);
  }
  // Bits below the digit
  FASTREPULSE_HOST_DEVICE static constexpr int shift(int pass) {
    return pass + 1 < kPasses ? kBits - kWidth * (pass + 1) : 0;
  }
};

// The bandwidth is at least this share of the particles' variance.
constexpr double kBandwidthFloor = 1e-4;

// The larger of median / log N and the floor, or 1 if both are 0. NaN in either input propagates.
template <class T>
FASTREPULSE_HOST_DEVICE T bandwidth_of(T scaled_median, T floor) {
  const T larger = floor > scaled_median || floor != floor ? floor : scaled_median;
  return larger == 0 ? T{1} : larger;
}

}  // namespace fastrepulse
