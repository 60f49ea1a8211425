// Built once for each instruction set, with FASTREPULSE_ISA naming it and the compiler's flags
// choosing it. Includes no header with inline functions of external linkage: a linker would be free
// to keep the copy that was built for a processor which is not there.
#include "tiles.h"

#include "activation_tiles.h"
#include "exponential.h"
#include "transpose_tiles.h"
#include "vectors.h"
#include "winograd_tiles.h"

namespace fastrepulse {
namespace {

// With two vectors to the row as many sums as the registers hold beside what is multiplied: 32 of
// them with AVX-512, else 16.
constexpr int kRows = kBytes == 64 ? 8 : 6;

// How much of the depth is multiplied at once: its part of a block's columns stays in the cache
// that is next to the processor while all rows meet it.
constexpr int kDepth = 256;

// One block of kHeight x (kVectors * lanes) sums stays in registers over the whole depth.
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
      // The rows that come next
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

// All rows of `kVectors` vectors of columns; what is left of them comes in blocks of four and two.
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

template <class T>
void softmax_weights(T* tile, ptrdiff_t tile_row, T exponent_scale, T* maxima, T* sums, T* factors,
                     int rows, int cols) {
  for (int j = 0; j < cols; j += kLanes<T>) {
    const Values<T> before = load(maxima + j);
    Values<T> maximum = before;
    for (int i = 0; i < rows; ++i) {
      const Values<T> score = load(tile + i * tile_row + j);
      maximum = score > maximum ? score : maximum;
    }
    const Values<T> factor = exp2_of<T>((before - maximum) * exponent_scale);
    Values<T> sum = load(sums + j) * factor;
    for (int i = 0; i < rows; ++i) {
      const Values<T> below = load(tile + i * tile_row + j) - maximum;
      const Values<T> weight = exp2_of<T>(below * exponent_scale);
      store(tile + i * tile_row + j, weight);
      sum += weight;
    }
    store(maxima + j, maximum);
    store(sums + j, sum);
    store(factors + j, factor);
  }
}

// Calls with_vectors(j) and then with_numbers(j) for the columns that are left.
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
    // From the first row on: what rounds is as small as the rows are close
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
void scale_rows(T* x, ptrdiff_t x_row, const T* factors, int rows, int cols) {
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; j += kLanes<T>) {
      store(x + i * x_row + j, load(x + i * x_row + j) * factors[i]);
    }
  }
}

template <class T>
constexpr TileOps<T> kTileOps = {
    2 * kLanes<T>, multiply<T>,        squared_norms<T>, squared_distances<T>,
    weights<T>,    softmax_weights<T>, centre<T>,        subtract<T>,
    add<T>,        forces<T>,          scale_rows<T>,    transpose<T>};

}  // namespace

#define FASTREPULSE_STRING(name) #name
#define FASTREPULSE_NAME(name) FASTREPULSE_STRING(name)
extern const InstructionSet FASTREPULSE_ISA;
const InstructionSet FASTREPULSE_ISA = {FASTREPULSE_NAME(FASTREPULSE_ISA), kTileOps<float>,
                                        kTileOps<double>, kWinogradOps, kActivationOps};

}  // namespace fastrepulse
