#include "gram.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace fastrepulse {

template <class T>
void read_chunk(const Embeddings& x, int64_t first, int64_t depth, const T* offset, int rows,
                T* to) {
  for (int64_t i = 0; i < rows; ++i) {
    T* row = to + i * kGramDepth;
    const int64_t present = i < x.count ? depth : 0;
    if (present > 0) {
      read_row(x, i, first, first + depth, offset, row);
    }
    std::fill(row + present, row + kGramDepth, T{0});
  }
}

template <class T>
Gram<T>::Gram(const Embeddings& x, const T* offset)
    : size(static_cast<int>(round_up(x.count, kTileStep))), dots(size * size), norms(size) {
  const TileOps<T>& ops = tile_ops<T>();
  const int64_t chunks = divide_up(x.dim, kGramDepth);
  const int64_t parts = std::min<int64_t>(torch::stable::get_num_threads(), chunks);
  const int64_t area = static_cast<int64_t>(size) * size;
  const Buffer<T> part_dots(parts * area), part_norms(parts * size);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> rows(size * kGramDepth), columns(size * kGramDepth);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t start = part * chunks / parts;
      for (int64_t chunk = start; chunk < (part + 1) * chunks / parts; ++chunk) {
        const int64_t first = chunk * kGramDepth;
        const bool accumulate = chunk > start;
        read_chunk(x, first, std::min<int64_t>(kGramDepth, x.dim - first), offset, size,
                   rows.data());
        ops.transpose(rows.data(), kGramDepth, columns.data(), size, size, kGramDepth);
        ops.squared_norms(columns.data(), size, part_norms.data() + part * size, kGramDepth, size,
                          accumulate);
        // The upper triangle, in steps that leave next to nothing of the lower one
        for (int i = 0; i < size; i += kTileStep) {
          ops.multiply(rows.data() + i * kGramDepth, kGramDepth, 1, columns.data() + i, size,
                       part_dots.data() + part * area + static_cast<int64_t>(i) * size + i, size,
                       kTileStep, kGramDepth, size - i, accumulate);
        }
      }
    }
  });
  torch::stable::parallel_for(0, size, grain_of(size), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      norms[i] = i < x.count ? T{0} : std::numeric_limits<T>::infinity();
      for (int64_t part = 0; part < parts; ++part) {
        norms[i] += part_norms[part * size + i];
      }
      for (int64_t j = 0; j < size; ++j) {
        T sum = 0;
        for (int64_t part = 0; part < parts; ++part) {
          sum += part_dots[part * area + (i <= j ? i * size + j : j * size + i)];
        }
        dots[i * size + j] = sum;
      }
    }
  });
}

template void read_chunk(const Embeddings&, int64_t, int64_t, const float*, int, float*);
template void read_chunk(const Embeddings&, int64_t, int64_t, const double*, int, double*);
template struct Gram<float>;
template struct Gram<double>;

}  // namespace fastrepulse
