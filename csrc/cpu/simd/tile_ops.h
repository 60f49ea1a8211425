// The operations on tiles that are compiled once for each instruction set.
#pragma once

#include <cstddef>

namespace fastrepulse {

// Pointers may be unaligned. `rows` and `cols` are multiples of `kTileStep`, unless an operation
// says otherwise.
constexpr int kTileStep = 16;
constexpr int kRowStep = 8;

template <class T>
struct TileOps {
  // Columns that `multiply` sums at once. It is fastest when such rows lie side by side.
  int width;

  // c[i][j] (+)= sum_k a[i * a_row + k * a_k] * b[k][j], summed in the order of k. `rows` is a
  // multiple of `kRowStep`.
  void (*multiply)(const T* a, ptrdiff_t a_row, ptrdiff_t a_k, const T* b, ptrdiff_t b_row, T* c,
                   ptrdiff_t c_row, int rows, int depth, int cols, bool accumulate);

  // norms[j] (+)= sum_k x[k][j]^2, in the order of `multiply`. So the distance between exact
  // duplicates is exactly zero.
  void (*squared_norms)(const T* x, ptrdiff_t x_row, T* norms, int depth, int cols,
                        bool accumulate);

  // Turns the dot products in any number of rows into squared distances of at least zero.
  void (*squared_distances)(T* tile, ptrdiff_t tile_row, const T* row_norms, const T* col_norms,
                            int rows, int cols);

  // Turns the dot products in a tile into weights 2^(exponent_scale * distance^2), times
  // `col_weights` unless that is null. Adds the weights to `row_sums` and, unless that is null, to
  // `col_sums`.
  void (*weights)(T* tile, ptrdiff_t tile_row, const T* row_norms, const T* col_norms,
                  const T* col_weights, T exponent_scale, T* row_sums, T* col_sums, int rows,
                  int cols);

  // Subtracts from each column its mean over any number of rows. The means go to `means`.
  void (*centre)(T* x, ptrdiff_t x_row, T* means, int rows, int cols);

  // to[i][j] = from[i][j] - offset[j], for any number of rows and columns.
  void (*subtract)(const T* from, ptrdiff_t from_row, const T* offset, T* to, ptrdiff_t to_row,
                   int rows, int cols);

  // to[i][j] += from[i][j], for any number of rows and columns.
  void (*add)(const T* from, ptrdiff_t from_row, T* to, ptrdiff_t to_row, int rows, int cols);

  // Turns weighted sums into forces: sums[i][j] = scale (totals[i] x[i][j] - sums[i][j]), for any
  // number of rows and columns.
  void (*forces)(T* sums, ptrdiff_t sums_row, const T* totals, const T* x, ptrdiff_t x_row, T scale,
                 int rows, int cols);

  // to[c][r] = from[r][c], for any number of columns.
  void (*transpose)(const T* from, ptrdiff_t from_row, T* to, ptrdiff_t to_row, int rows, int cols);
};

// Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray 2015, arXiv:1509.09308). Channels lie side
// by side, a multiple of `kTileStep` of them. The 36 products of a tile are `to_step` or
// `from_step` apart. The pixels of the next tile lie `ahead` of this tile's pixels.
constexpr int kOutputSide = 4;
constexpr int kInputSide = 6;
constexpr int kPoints = kInputSide * kInputSide;

struct WinogradOps {
  // B^T d B of a tile of pixels d [6, 6], each at its own pointer, from channel `first` on.
  void (*input)(const float* const* pixels, ptrdiff_t first, ptrdiff_t ahead, float* to,
                ptrdiff_t to_step, int channels);

  // G g G^T of filters g [cols, 3, 3, rows]. The result is [rows, cols], rows `to_row` apart.
  void (*filters)(const float* filters, ptrdiff_t filter_step, ptrdiff_t tap_step, float* to,
                  ptrdiff_t to_row, ptrdiff_t to_step, int rows, int cols);

  // A^T m A + bias, to a tile of pixels [4, 4], each at its own pointer.
  void (*output)(const float* from, ptrdiff_t from_step, const float* bias, float* const* pixels,
                 ptrdiff_t ahead, int channels);
};

struct InstructionSet {
  const char* name;
  TileOps<float> float32;
  TileOps<double> float64;
  WinogradOps winograd;
};

// The best instruction set that this processor has.
const InstructionSet& instruction_set();

template <class T>
const TileOps<T>& tile_ops();
template <>
inline const TileOps<float>& tile_ops() {
  return instruction_set().float32;
}
template <>
inline const TileOps<double>& tile_ops() {
  return instruction_set().float64;
}

}  // namespace fastrepulse
