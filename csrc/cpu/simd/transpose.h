// Transposes of vectors in registers and of tiles, compiled as part of tiles.cpp.
#pragma once

#include "cpu/simd/vectors.h"

#ifndef __has_builtin
#define __has_builtin(name) 0
#endif

namespace fastrepulse {
namespace {

template <int... kLane>
struct LaneList {};
template <int kCount, int... kLane>
struct FirstLanes : FirstLanes<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct FirstLanes<0, kLane...> {
  using List = LaneList<kLane...>;
};

// Selects lanes of `low` (numbered from 0) and of `high` (numbered on from there).
template <class T, int... kLane>
inline Values<T> select_lanes(Values<T> low, Values<T> high) {
#if __has_builtin(__builtin_shufflevector)  // GCC from 12 on, and Clang
  return __builtin_shufflevector(low, high, kLane...);
#else
  return __builtin_shuffle(low, high, Bits<T>{kLane...});
#endif
}

// Exchanges the lanes of `low` that have the bit `kBit` in their number with the lanes of `high`
// that do not.
template <class T, int kBit, int... kLane>
inline void swap_lanes(Values<T>& low, Values<T>& high, LaneList<kLane...>) {
  constexpr int W = sizeof...(kLane);
  const Values<T> l = low, h = high;
  low = select_lanes<T, (kLane & kBit ? W + kLane - kBit : kLane)...>(l, h);
  high = select_lanes<T, (kLane & kBit ? W + kLane : kLane + kBit)...>(l, h);
}

// Transposes a square of vectors, one bit of the row and lane numbers at a time (Eklundh 1972).
template <class T, int kBit = 1>
inline void transpose_vectors(Values<T>* x) {
  constexpr int W = kLanes<T>;
  if constexpr (kBit < W) {
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) {
      if (!(r & kBit)) {
        swap_lanes<T, kBit>(x[r], x[r + kBit], typename FirstLanes<W>::List{});
      }
    }
    transpose_vectors<T, 2 * kBit>(x);
  }
}

template <class T>
void transpose(const T* from, ptrdiff_t from_row, T* to, ptrdiff_t to_row, int rows, int cols) {
  constexpr int W = kLanes<T>;
  int c0 = 0;
  for (; c0 + W <= cols; c0 += W) {
    for (int r0 = 0; r0 < rows; r0 += W) {
      Values<T> x[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) {
        x[r] = load(from + (r0 + r) * from_row + c0);
      }
      transpose_vectors<T>(x);
#pragma GCC unroll 16
      for (int c = 0; c < W; ++c) {
        store(to + (c0 + c) * to_row + r0, x[c]);
      }
    }
  }
  // Columns beyond the last whole vector
  for (int c = c0; c < cols; ++c) {
    for (int r = 0; r < rows; ++r) {
      to[c * to_row + r] = from[r * from_row + c];
    }
  }
}

}  // namespace
}  // namespace fastrepulse
