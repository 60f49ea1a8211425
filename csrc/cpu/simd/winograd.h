// The transforms of Winograd's F(4x4, 3x3), compiled as part of tiles.cpp.
#pragma once

#include "cpu/simd/tile_ops.h"
#include "cpu/simd/transpose.h"
#include "cpu/simd/vectors.h"

namespace fastrepulse {
namespace {

// The points of interpolation are 0, +-a, +-1/a and infinity with a = sqrt(2). Their rounding error
// is half as large as with the usual points 0, +-1, +-2 and infinity.
constexpr float kFar = 1.41421356f;
constexpr float kNear = 0.707106781f;
constexpr float kFar2 = 2.0f;
constexpr float kNear2 = 0.5f;
constexpr float kSum2 = kFar2 + kNear2;

// B^T d
inline void transform_input(const Floats* d, Floats* to) {
  const Floats near_even = d[4] - kFar2 * d[2], near_odd = d[3] - kFar2 * d[1];
  const Floats far_even = d[4] - kNear2 * d[2], far_odd = d[3] - kNear2 * d[1];
  to[0] = d[4] - kSum2 * d[2] + d[0];
  to[1] = near_even + kNear * near_odd;
  to[2] = near_even - kNear * near_odd;
  to[3] = far_even + kFar * far_odd;
  to[4] = far_even - kFar * far_odd;
  to[5] = d[5] - kSum2 * d[3] + d[1];
}

// G g
inline void transform_filter(const Floats* g, Floats* to) {
  // 1 / (2 p^2 (p^2 - q^2)) at the points +-p, where +-q are the others
  constexpr float kNearScale = 1 / (2 * kNear2 * (kNear2 - kFar2));
  constexpr float kFarScale = 1 / (2 * kFar2 * (kFar2 - kNear2));
  const Floats near_even = kNearScale * g[0] + (kNearScale * kNear2) * g[2];
  const Floats far_even = kFarScale * g[0] + (kFarScale * kFar2) * g[2];
  to[0] = g[0];
  to[1] = near_even + (kNearScale * kNear) * g[1];
  to[2] = near_even - (kNearScale * kNear) * g[1];
  to[3] = far_even + (kFarScale * kFar) * g[1];
  to[4] = far_even - (kFarScale * kFar) * g[1];
  to[5] = g[2];
}

// A^T m
inline void transform_output(const Floats* m, Floats* to) {
  const Floats near_even = m[1] + m[2], near_odd = m[1] - m[2];
  const Floats far_even = m[3] + m[4], far_odd = m[3] - m[4];
  to[0] = m[0] + near_even + far_even;
  to[1] = kNear * near_odd + kFar * far_odd;
  to[2] = kNear2 * near_even + kFar2 * far_even;
  to[3] = (kNear * kNear2) * near_odd + (kFar * kFar2) * far_odd + m[5];
}

void winograd_input(const float* const* pixels, ptrdiff_t first, ptrdiff_t ahead, float* to,
                    ptrdiff_t to_step, int channels) {
  for (int c = 0; c < channels; c += kLanes<float>) {
    Floats half[kInputSide][kInputSide];  // [column, point]
#pragma GCC unroll 6
    for (int j = 0; j < kInputSide; ++j) {
      Floats column[kInputSide];
#pragma GCC unroll 6
      for (int i = 0; i < kInputSide; ++i) {
        const float* pixel = pixels[i * kInputSide + j] + first + c;
        column[i] = load(pixel);
        // The next tile shares the last columns of this one
        if (j >= kInputSide - kOutputSide) {
          __builtin_prefetch(pixel + ahead);
        }
      }
      transform_input(column, half[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kInputSide; ++i) {
      Floats row[kInputSide], points[kInputSide];
#pragma GCC unroll 6
      for (int j = 0; j < kInputSide; ++j) {
        row[j] = half[j][i];
      }
      transform_input(row, points);
#pragma GCC unroll 6
      for (int j = 0; j < kInputSide; ++j) {
        store(to + (i * kInputSide + j) * to_step + c, points[j]);
      }
    }
  }
}

void winograd_output(const float* from, ptrdiff_t from_step, const float* bias,
                     float* const* pixels, ptrdiff_t ahead, int channels) {
  for (int c = 0; c < channels; c += kLanes<float>) {
    Floats half[kInputSide][kOutputSide];  // [column, pixel]
#pragma GCC unroll 6
    for (int j = 0; j < kInputSide; ++j) {
      Floats column[kInputSide];
#pragma GCC unroll 6
      for (int i = 0; i < kInputSide; ++i) {
        column[i] = load(from + (i * kInputSide + j) * from_step + c);
      }
      transform_output(column, half[j]);
    }
    const Floats offset = load(bias + c);
#pragma GCC unroll 4
    for (int i = 0; i < kOutputSide; ++i) {
      Floats row[kInputSide], out[kOutputSide];
#pragma GCC unroll 6
      for (int j = 0; j < kInputSide; ++j) {
        row[j] = half[j][i];
      }
      transform_output(row, out);
#pragma GCC unroll 4
      for (int j = 0; j < kOutputSide; ++j) {
        float* pixel = pixels[i * kOutputSide + j] + c;
        store(pixel, out[j] + offset);
        __builtin_prefetch(pixel + ahead, 1);
      }
    }
  }
}

void winograd_filters(const float* filters, ptrdiff_t filter_step, ptrdiff_t tap_step, float* to,
                      ptrdiff_t to_row, ptrdiff_t to_step, int rows, int cols) {
  constexpr int W = kLanes<float>;
  constexpr int kSide = 3;
  for (int c = 0; c < cols; c += W) {
    for (int r = 0; r < rows; r += W) {
      Floats taps[kSide * kSide][W];
      for (int tap = 0; tap < kSide * kSide; ++tap) {
        Floats square[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          square[i] = load(filters + (c + i) * filter_step + tap * tap_step + r);
        }
        transpose_vectors<float>(square);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          taps[tap][i] = square[i];
        }
      }
      for (int i = 0; i < W; ++i) {
        Floats half[kSide][kInputSide];  // [column, point]
#pragma GCC unroll 3
        for (int j = 0; j < kSide; ++j) {
          const Floats column[] = {taps[j][i], taps[kSide + j][i], taps[2 * kSide + j][i]};
          transform_filter(column, half[j]);
        }
#pragma GCC unroll 6
        for (int p = 0; p < kInputSide; ++p) {
          const Floats row[] = {half[0][p], half[1][p], half[2][p]};
          Floats points[kInputSide];
          transform_filter(row, points);
#pragma GCC unroll 6
          for (int q = 0; q < kInputSide; ++q) {
            store(to + (p * kInputSide + q) * to_step + (r + i) * to_row + c, points[q]);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastrepulse
