// Activations and what goes before them, compiled with the tiles.
#pragma once

#include "exponential.h"
#include "tiles.h"
#include "vectors.h"

namespace fastrepulse {
namespace {

inline Floats magnitude(Floats x) { return x < Floats{} ? -x : x; }

// exp(-x) for x >= 0
inline Floats decay(Floats x) {
  constexpr float kLog2E = 1.44269504f;
  return exp2_of<float>(-kLog2E * x);
}

// x / (1 + exp(-x))
inline Floats silu(Floats x) {
  const Floats e = decay(magnitude(x));
  return x * (x < Floats{} ? e : splat(1.0f)) / (1.0f + e);
}

// x / 2 (1 + erf(x / sqrt(2))), with erf to 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26).
inline Floats gelu(Floats x) {
  constexpr float kCoefficients[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f,
                                     0.254829592f};
  const Floats z = 0.707106781f * magnitude(x);
  const Floats t = 1.0f / (1.0f + 0.3275911f * z);
  Floats sum = splat(kCoefficients[0]);
#pragma GCC unroll 4
  for (int i = 1; i < 5; ++i) {
    sum = sum * t + kCoefficients[i];
  }
  const Floats tail = 0.5f * t * sum * decay(z * z);  // (1 - erf z) / 2
  return x * (x < Floats{} ? tail : 1.0f - tail);
}

void gate(const float* x, const float* gates, float* out, int cols) {
  for (int j = 0; j < cols; j += kLanes<float>) {
    store(out + j, load(x + j) * gelu(load(gates + j)));
  }
}

// As many vectors of a row at once as make whole lines of the cache.
template <int kVectors>
void moments_of(const float* x, const float* pivots, float* sums, float* squares, int rows,
                ptrdiff_t row) {
  Floats pivot[kVectors], sum[kVectors], square[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    pivot[v] = load(pivots + v * kLanes<float>);
    sum[v] = load(sums + v * kLanes<float>);
    square[v] = load(squares + v * kLanes<float>);
  }
  for (int i = 0; i < rows; ++i, x += row) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Floats d = load(x + v * kLanes<float>) - pivot[v];
      sum[v] += d;
      square[v] += d * d;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    store(sums + v * kLanes<float>, sum[v]);
    store(squares + v * kLanes<float>, square[v]);
  }
}

void moments(const float* x, const float* pivots, float* sums, float* squares, int rows,
             int cols) {
  constexpr int kWide = 4;
  int j = 0;
  for (; j + kWide * kLanes<float> <= cols; j += kWide * kLanes<float>) {
    moments_of<kWide>(x + j, pivots + j, sums + j, squares + j, rows, cols);
  }
  for (; j < cols; j += kLanes<float>) {
    moments_of<1>(x + j, pivots + j, sums + j, squares + j, rows, cols);
  }
}

void scale_silu(const float* x, const float* scales, const float* offsets, float* out, int rows,
                int cols) {
  for (int i = 0; i < rows; ++i, x += cols, out += cols) {
    for (int j = 0; j < cols; j += kLanes<float>) {
      store(out + j, silu(load(x + j) * load(scales + j) + load(offsets + j)));
    }
  }
}

constexpr ActivationOps kActivationOps = {gate, moments, scale_silu};

}  // namespace
}  // namespace fastrepulse
