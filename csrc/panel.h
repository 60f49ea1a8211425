// A run of particles in the two layouts that the tiles are computed from.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "tiles.h"

namespace fastrepulse {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

constexpr std::align_val_t kAlignment{64};

// Asks for huge pages where memory is large enough for some: a fault for every 4 KiB of it would
// take a tenth of the time of what is computed there.
inline void prefer_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

// Aligned memory that is not cleared.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0) { resize(size); }
  void resize(int64_t size) {
    const size_t bytes = static_cast<size_t>(size) * sizeof(T);
    data_.reset(static_cast<T*>(::operator new[](bytes, kAlignment)));
    prefer_huge_pages(data_.get(), bytes);
  }
  T* data() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, kAlignment); }
  };
  std::unique_ptr<T[], Free> data_;
};

enum class Element { kFloat, kDouble, kHalf, kBFloat16 };

// Contiguous embeddings [count, dim] as the caller has them.
struct Embeddings {
  const void* data;
  Element element;
  int64_t count;
  int64_t dim;
};

// Reads dimensions [begin, end) of one embedding, less `offset`, which holds all dimensions.
template <class T>
void read_row(const Embeddings& x, int64_t row, int64_t begin, int64_t end, const T* offset, T* to);

// The mean embedding. Distances are taken between centred embeddings, whose norms cancel less.
template <class T>
Buffer<T> mean_embedding(const Embeddings& x);

// Values from one row of a panel to the next: never a multiple of a page's, or the rows of a block
// would fall into the same few places of the cache.
constexpr int64_t row_stride(int64_t dim) {
  const int64_t stride = round_up(dim, kTileStep);
  return stride % 256 == 0 ? stride + kTileStep : stride;
}

// Particles [first, first + count) of some embeddings, cut into blocks of `block` rows. What is
// missing in the last block lies infinitely far away, so that its weights are zero.
template <class T>
class Panel {
 public:
  Panel(int64_t capacity, int64_t dim, int block, bool accumulate)
      : block(block),
        dim(dim),
        stride(row_stride(dim)),
        rows(round_up(capacity, block) * stride),
        columns(round_up(capacity, block) * dim),
        norms(round_up(capacity, block)),
        sums(accumulate ? round_up(capacity, block) : 0),
        weighted(accumulate ? round_up(capacity, block) * stride : 0) {}

  void pack(const Embeddings& x, const T* offset, int64_t first, int64_t count);
  void clear_sums();

  int64_t blocks() const { return divide_up(count, block); }
  const T* rows_of(int64_t b) const { return rows.data() + b * block * stride; }
  const T* columns_of(int64_t b) const { return columns.data() + b * block * dim; }
  const T* norms_of(int64_t b) const { return norms.data() + b * block; }
  T* sums_of(int64_t b) const { return sums.data() + b * block; }
  T* weighted_of(int64_t b) const { return weighted.data() + b * block * stride; }

  int block;
  int64_t dim;
  int64_t stride;
  int64_t first = 0;
  int64_t count = 0;

 private:
  Buffer<T> rows;      // [blocks, block, stride]
  Buffer<T> columns;   // [blocks, dim, block]
  Buffer<T> norms;     // [blocks, block]
  Buffer<T> sums;      // [blocks, block]: similarity so far
  Buffer<T> weighted;  // [blocks, block, stride]: sum of weight times embedding so far
};

// How many rows a panel may have for `panels` of them to take at most `kPanelBytes` together.
constexpr int64_t kPanelBytes = 16 << 20;

template <class T>
int64_t panel_rows(int64_t count, int64_t dim, int block, int panels, bool accumulate) {
  const int64_t row_bytes = (accumulate ? 3 : 2) * row_stride(dim) * sizeof(T);
  const int64_t affordable = kPanelBytes / (panels * row_bytes) / block * block;
  return std::min(count, std::max<int64_t>(affordable, block));
}

}  // namespace fastrepulse
