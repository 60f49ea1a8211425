// The transpose of a tile, compiled with the tiles.
#pragma once

#include "vectors.h"

#ifndef __has_builtin
#define __has_builtin(name) 0
#endif

namespace fastrepulse {
namespace {

template <class T>
void transpose_plainly(const T* from, ptrdiff_t from_row, T* to, ptrdiff_t to_row, int rows,
                       int cols) {
  constexpr int kSide = 16;
  for (int r0 = 0; r0 < rows; r0 += kSide) {
    for (int c = 0; c < cols; ++c) {
      for (int r = r0; r < r0 + kSide; ++r) {
        to[c * to_row + r] = from[r * from_row + c];
      }
    }
  }
}

// GCC from 12 on, and Clang
#if __has_builtin(__builtin_shufflevector)

template <int... kLane>
struct LaneList {};
template <int kCount, int... kLane>
struct FirstLanes : FirstLanes<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct FirstLanes<0, kLane...> {
  using List = LaneList<kLane...>;
};

// Swaps the lanes of `low` whose number has the bit `kBit` with those of `high` whose has not.
template <class T, int kBit, int... kLane>
inline void swap_lanes(Values<T>& low, Values<T>& high, LaneList<kLane...>) {
  constexpr int W = sizeof...(kLane);
  const Values<T> l = low, h = high;
  low = __builtin_shufflevector(l, h, (kLane & kBit ? W + kLane - kBit : kLane)...);
  high = __builtin_shufflevector(l, h, (kLane & kBit ? W + kLane : kLane + kBit)...);
}

// Transposes as many vectors as they have lanes, bit by bit of the numbers of both (Eklundh 1972).
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
  transpose_plainly(from + c0, from_row, to + c0 * to_row, to_row, rows, cols - c0);
}

#else

template <class T>
void transpose(const T* from, ptrdiff_t from_row, T* to, ptrdiff_t to_row, int rows, int cols) {
  transpose_plainly(from, from_row, to, to_row, rows, cols);
}

#endif

}  // namespace
}  // namespace fastrepulse
