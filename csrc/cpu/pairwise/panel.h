// Consecutive particles in the layouts from which tiles are computed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/simd/tile_ops.h"
#include "cpu/sizes.h"

namespace fastrepulse {

enum class Element { kFloat, kDouble, kHalf, kBFloat16 };

// Contiguous embeddings [count, dim] as the caller has them.
struct Embeddings {
  const void* data;
  Element element;
  int64_t count;
  int64_t dim;
};

// Reads dimensions [begin, end) of the embeddings [first, first + rows). Subtracts `offset`, which
// holds all dimensions, unless it is null.
template <class T>
void read_rows(const Embeddings& x, int64_t first, int64_t rows, int64_t begin, int64_t end,
               const T* offset, T* to, int64_t to_row);

// The same, to a block [block_rows, block_cols] that is zero elsewhere.
template <class T>
void read_block(const Embeddings& x, int64_t first, int64_t rows, int64_t begin, int64_t end,
                const T* offset, T* to, int64_t block_rows, int64_t block_cols);

// The mean embedding, with the same bits as from `centre`. Distances are computed between centred
// embeddings, because their smaller norms lose fewer digits by cancellation.
template <class T>
Buffer<T> mean_embedding(const Embeddings& x);

// Particles in a block. A tile is the product of two blocks.
constexpr int kBlock = 64;

// Particles [first, first + count), cut into blocks, in layouts that products read sequentially.
// The last block is filled with particles at infinite distance, so that their weights are zero.
template <class T>
class Panel {
 public:
  // Without `with_rows` the panel has only columns and norms.
  Panel(int64_t capacity, int64_t dim, bool with_rows);

  void pack(const Embeddings& x, const T* offset, int64_t first, int64_t count);

  int64_t blocks() const { return divide_up(count, kBlock); }
  // Dimensions, rounded up; zero from `dim` on
  int64_t padded() const { return round_up(dim, kTileStep); }
  const T* columns_of(int64_t b) const { return columns.data() + b * kBlock * dim; }
  const T* norms_of(int64_t b) const { return norms.data() + b * kBlock; }

  // sums[i][j] (+)= sum_k weights[i * row + k * col] x[k][column + j] over the particles k of a
  // block, for kBlock i and the j below `cols`.
  void add_weighted(int64_t b, const T* weights, ptrdiff_t row, ptrdiff_t col, int64_t column,
                    int64_t cols, T* sums, int64_t sums_row, bool accumulate) const;

  int64_t dim;
  int64_t first = 0;
  int64_t count = 0;

 private:
  int64_t capacity;
  int width;          // of a slice, which is multiplied at once
  Buffer<T> columns;  // [blocks, dim, kBlock]
  Buffer<T> norms;    // [blocks, kBlock]
  Buffer<T> slices;   // [padded / width, capacity, width]
};

// Rows of a panel, at most `most`. Two panels take at most `kPanelBytes`, and all panels have about
// the same number of rows.
constexpr int64_t kPanelBytes = 24 << 20;

template <class T>
int64_t panel_rows(int64_t count, int64_t dim, bool with_rows,
                   int64_t most = std::numeric_limits<int64_t>::max()) {
  const int64_t row_bytes = (with_rows ? 2 : 1) * round_up(dim, kTileStep) * sizeof(T);
  const int64_t affordable = std::min(kPanelBytes / (2 * row_bytes), most) / kBlock * kBlock;
  const int64_t panels = divide_up(count, std::max<int64_t>(affordable, kBlock));
  return round_up(divide_up(count, panels), kBlock);
}

// Cuts embeddings into panels of `rows` rows. Calls visit(panel, panel) for each panel and
// visit(left, right) for each pair of panels.
template <class T, class Visit>
void visit_panel_pairs(const Embeddings& x, const T* offset, int64_t rows, bool with_rows,
                       const Visit& visit) {
  Panel<T> left(rows, x.dim, with_rows), right(rows < x.count ? rows : 0, x.dim, with_rows);
  for (int64_t first = 0; first < x.count; first += rows) {
    left.pack(x, offset, first, std::min(rows, x.count - first));
    visit(left, left);
    for (int64_t second = first + rows; second < x.count; second += rows) {
      right.pack(x, offset, second, std::min(rows, x.count - second));
      visit(left, right);
    }
  }
}

// The number of tiles of two panels. Within one panel tiles below the diagonal are left out.
template <class T>
int64_t count_tiles(const Panel<T>& left, const Panel<T>& right) {
  const int64_t n = left.blocks();
  return &left == &right ? n * (n + 1) / 2 : n * right.blocks();
}

// Calls visit(a, b) for the tiles [begin, end) of two panels. Within one panel the longest row is
// followed by the shortest, then the second longest by the second shortest. Such a pair of rows has
// n + 1 tiles.
template <class T, class Visit>
void visit_tiles(const Panel<T>& left, const Panel<T>& right, int64_t begin, int64_t end,
                 const Visit& visit) {
  const int64_t n = left.blocks();
  for (int64_t i = begin; i < end; ++i) {
    if (&left != &right) {
      visit(i / right.blocks(), i % right.blocks());
      continue;
    }
    const int64_t a = i / (n + 1), b = a + i % (n + 1);
    b < n ? visit(a, b) : visit(n - 1 - a, b - a - 1);
  }
}

}  // namespace fastrepulse
