// Compiled once for each instruction set: FASTREPULSE_ISA names it, and compiler flags select it.
// No header here may define inline functions of external linkage, since the linker could keep the
// copy for an instruction set that the processor lacks.
#include "cpu/simd/exponential.h"
#include "cpu/simd/tile_ops.h"
#include "cpu/simd/transpose.h"
#include "cpu/simd/vectors.h"
#include "cpu/simd/winograd.h"

namespace fastrepulse {
namespace {

// Rows of a block, with two vectors of sums to a row. The sums and the factors fill the registers:
// 32 with AVX-512, else 16.
constexpr int kRows = kBytes == 64 ? 8 : 6;

// Depth that is multiplied at once. Its part of a block's columns stays in the first-level cache
// while all rows are multiplied by it.
constexpr int kDepth = 256;

// A block of kHeight x (kVectors * lanes) sums stays in registers over the whole depth.
template <class T, int kHeight, int kVectors>
inline __attribute__((always_inline)) void multiply_block(const T* a, ptrdiff_t a_row,
                                                          ptrdiff_t a_k, const T* b,
                                                          ptrdiff_t b_row, T* c, ptrdiff_t c_row,
                                                          int depth, bool accumulate) {
  constexpr int W = kLanes<T>;
  Values<T> sum[kHeight][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sum[i][v] = accumulate ? load(c + i * c_row + v * W) : Values<T>{};
    }
  }
  for (int k = 0; k < depth; ++k) {
    if (k % W == 0) {
      // The next rows
#pragma GCC unroll 8
      for (int i = 0; i < kHeight; ++i) {
        __builtin_prefetch(a + (kHeight + i) * a_row + k * a_k);
      }
    }
    Values<T> row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      row[v] = load(b + k * b_row + v * W);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kHeight; ++i) {
      const Values<T> factor = splat(a[i * a_row + k * a_k]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sum[i][v] += factor * row[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      store(c + i * c_row + v * W, sum[i][v]);
    }
  }
}

// All rows of `kVectors` vectors of columns. The last rows come in blocks of four and two.
template <class T, int kVectors>
inline void multiply_columns(const T* a, ptrdiff_t a_row, ptrdiff_t a_k, const T* b,
                             ptrdiff_t b_row, T* c, ptrdiff_t c_row, int rows, int depth,
                             bool accumulate) {
  int i = 0;
  for (; i + kRows <= rows; i += kRows) {
    multiply_block<T, kRows, kVectors>(a + i * a_row, a_row, a_k, b, b_row, c + i * c_row, c_row,
                                       depth, accumulate);
  }
  if (i + 4 <= rows) {
    multiply_block<T, 4, kVectors>(a + i * a_row, a_row, a_k, b, b_row, c + i * c_row, c_row, depth,
                                   accumulate);
    i += 4;
  }
  if (i + 2 <= rows) {
    multiply_block<T, 2, kVectors>(a + i * a_row, a_row, a_k, b, b_row, c + i * c_row, c_row, depth,
                                   accumulate);
  }
}

template <class T>
void multiply(const T* a, ptrdiff_t a_row, ptrdiff_t a_k, const T* b, ptrdiff_t b_row, T* c,
              ptrdiff_t c_row, int rows, int depth, int cols, bool accumulate) {
  constexpr int W = kLanes<T>;
  for (int k = 0; k < depth; k += kDepth) {
    const int deep = depth - k < kDepth ? depth - k : kDepth;
    const T* from = a + k * a_k;
    const T* with = b + k * b_row;
    int j = 0;
    for (; j + 2 * W <= cols; j += 2 * W) {
      multiply_columns<T, 2>(from, a_row, a_k, with + j, b_row, c + j, c_row, rows, deep,
                             accumulate || k > 0);
    }
    for (; j < cols; j += W) {
      multiply_columns<T, 1>(from, a_row, a_k, with + j, b_row, c + j, c_row, rows, deep,
                             accumulate || k > 0);
    }
  }
}

template <class T>
void squared_norms(const T* x, ptrdiff_t x_row, T* norms, int depth, int cols, bool accumulate) {
  for (int j = 0; j < cols; j += kLanes<T>) {
    Values<T> sum = accumulate ? load(norms + j) : Values<T>{};
    for (int k = 0; k < depth; ++k) {
      const Values<T> row = load(x + k * x_row + j);
      sum += row * row;
    }
    store(norms + j, sum);
  }
}

template <class T>
inline Values<T> squared_distance(Values<T> dot, T row_norm, Values<T> col_norm) {
  const Values<T> distance = (row_norm + col_norm) - 2 * dot;
  return distance < 0 ? Values<T>{} : distance;
}

template <class T>
void squared_distances(T* tile, ptrdiff_t tile_row, const T* row_norms, const T* col_norms,
                       int rows, int cols) {
  for (int i = 0; i < rows; ++i) {
    T* row = tile + i * tile_row;
    for (int j = 0; j < cols; j += kLanes<T>) {
      store(row + j, squared_distance(load(row + j), row_norms[i], load(col_norms + j)));
    }
  }
}

template <class T>
void weights(T* tile, ptrdiff_t tile_row, const T* row_norms, const T* col_norms,
             const T* col_weights, T exponent_scale, T* row_sums, T* col_sums, int rows, int cols) {
  constexpr int W = kLanes<T>;
  for (int i = 0; i < rows; ++i) {
    T* row = tile + i * tile_row;
    Values<T> sum{};
    for (int j = 0; j < cols; j += W) {
      const auto distance = squared_distance(load(row + j), row_norms[i], load(col_norms + j));
      Values<T> weight = exp2_of<T>(distance * exponent_scale);
      if (col_weights) {
        weight *= load(col_weights + j);
      }
      store(row + j, weight);
      sum += weight;
      if (col_sums) {
        store(col_sums + j, load(col_sums + j) + weight);
      }
    }
    T total = 0;
    for (int lane = 0; lane < W; ++lane) {
      total += sum[lane];
    }
    row_sums[i] += total;
  }
}

// Calls with_vectors(j) for whole vectors of columns, then with_numbers(j) for the other columns.
template <class T, class WithVectors, class WithNumbers>
inline void each_column(int cols, const WithVectors& with_vectors,
                        const WithNumbers& with_numbers) {
  int j = 0;
  for (; j + kLanes<T> <= cols; j += kLanes<T>) {
    with_vectors(j);
  }
  for (; j < cols; ++j) {
    with_numbers(j);
  }
}

template <class T>
void subtract(const T* from, ptrdiff_t from_row, const T* offset, T* to, ptrdiff_t to_row, int rows,
              int cols) {
  for (int i = 0; i < rows; ++i, from += from_row, to += to_row) {
    each_column<T>(
        cols, [&](int j) { store(to + j, load(from + j) - load(offset + j)); },
        [&](int j) { to[j] = from[j] - offset[j]; });
  }
}

template <class T>
void add(const T* from, ptrdiff_t from_row, T* to, ptrdiff_t to_row, int rows, int cols) {
  for (int i = 0; i < rows; ++i, from += from_row, to += to_row) {
    each_column<T>(
        cols, [&](int j) { store(to + j, load(to + j) + load(from + j)); },
        [&](int j) { to[j] += from[j]; });
  }
}

template <class T>
void forces(T* sums, ptrdiff_t sums_row, const T* totals, const T* x, ptrdiff_t x_row, T scale,
            int rows, int cols) {
  for (int i = 0; i < rows; ++i, sums += sums_row, x += x_row) {
    each_column<T>(
        cols, [&](int j) { store(sums + j, scale * (totals[i] * load(x + j) - load(sums + j))); },
        [&](int j) { sums[j] = scale * (totals[i] * x[j] - sums[j]); });
  }
}

template <class T>
void centre(T* x, ptrdiff_t x_row, T* means, int rows, int cols) {
  for (int j = 0; j < cols; j += kLanes<T>) {
    // Differences from the first row keep rounding small for rows that are close together
    const Values<T> pivot = load(x + j);
    Values<T> sum{};
    for (int i = 1; i < rows; ++i) {
      sum += load(x + i * x_row + j) - pivot;
    }
    store(means + j, pivot + sum / static_cast<T>(rows));
  }
  subtract(x, x_row, means, x, x_row, rows, cols);
}

template <class T>
constexpr TileOps<T> make_tile_ops() {
  TileOps<T> ops{};
  ops.width = 2 * kLanes<T>;
  ops.multiply = multiply<T>;
  ops.squared_norms = squared_norms<T>;
  ops.squared_distances = squared_distances<T>;
  ops.weights = weights<T>;
  ops.centre = centre<T>;
  ops.subtract = subtract<T>;
  ops.add = add<T>;
  ops.forces = forces<T>;
  ops.transpose = transpose<T>;
  return ops;
}

constexpr WinogradOps make_winograd_ops() {
  WinogradOps ops{};
  ops.input = winograd_input;
  ops.filters = winograd_filters;
  ops.output = winograd_output;
  return ops;
}

constexpr InstructionSet make_instruction_set(const char* name) {
  InstructionSet set{};
  set.name = name;
  set.float32 = make_tile_ops<float>();
  set.float64 = make_tile_ops<double>();
  set.winograd = make_winograd_ops();
  return set;
}

}  // namespace

#define FASTREPULSE_STRING(name) #name
#define FASTREPULSE_NAME(name) FASTREPULSE_STRING(name)
extern const InstructionSet FASTREPULSE_ISA;
constexpr InstructionSet FASTREPULSE_ISA = make_instruction_set(FASTREPULSE_NAME(FASTREPULSE_ISA));

}  // namespace fastrepulse
