// Powers of two of vectors, compiled as part of tiles.cpp.
#pragma once

#include "cpu/simd/vectors.h"

namespace fastrepulse {
namespace {

// Taylor coefficients of 2^r = exp(r ln 2), highest first. For |r| <= 1/2 the error of the series
// is below one rounding.
constexpr float kExp2Float32[] = {1.5252734e-5f, 1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f,
                                 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f};
constexpr double kExp2Float64[] = {
    1.3691488853904130e-12, 2.5678435993488196e-11, 4.4455382718708101e-10, 7.0549116208011209e-09,
    1.0178086009239696e-07, 1.3215486790144305e-06, 1.5252733804059838e-05, 1.5403530393381606e-04,
    1.3333558146428441e-03, 9.6181291076284769e-03, 5.5504108664821576e-02, 2.4022650695910069e-01,
    6.9314718055994529e-01, 1.0};

inline const auto& exp2_coefficients(float) { return kExp2Float32; }
inline const auto& exp2_coefficients(double) { return kExp2Float64; }

// 2^t for t <= 0. Results below the normal numbers are 0, and NaN propagates.
template <class T>
inline Values<T> exp2_of(Values<T> t) {
  using V = Vector<T>;
  const Values<T> bounded = t < V::kSmallest ? splat(V::kSmallest) : t;
  const Values<T> shifted = bounded + V::kRound;
  const Values<T> whole = shifted - V::kRound;
  const Values<T> r = bounded - whole;
  const auto& coefficients = exp2_coefficients(T{});
  Values<T> power = splat(coefficients[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof(coefficients) / sizeof(T); ++i) {
    power = power * r + coefficients[i];
  }
  // The low bits of `shifted` hold the whole part. Moved up, they are the exponent of 2^whole.
  const Values<T> scale =
      (Values<T>)((((Bits<T>)shifted) << V::kMantissa) + (Bits<T>)splat(T{1}));
  const Values<T> result = power * scale;
  return t < V::kSmallest ? Values<T>{} : result;
}

}  // namespace
}  // namespace fastrepulse
