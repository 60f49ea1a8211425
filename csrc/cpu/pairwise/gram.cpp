#include "cpu/pairwise/gram.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace fastrepulse {

template <class T>
int64_t read_chunk(const Embeddings& x, int64_t chunk, const T* offset, int rows, T* to) {
  const int64_t first = chunk * kGramDepth;
  const int64_t depth = std::min<int64_t>(kGramDepth, x.dim - first);
  read_block(x, 0, x.count, first, first + depth, offset, to, rows, kGramDepth);
  return depth;
}

template <class T>
Gram<T>::Gram(const Embeddings& x)
    : size(static_cast<int>(round_up(x.count, kTileStep))),
      dots(size * size),
      norms(size),
      means(round_up(x.dim, kGramDepth)) {
  const TileOps<T>& ops = tile_ops<T>();
  const int64_t chunks = divide_up(x.dim, kGramDepth);
  const int64_t parts = std::min<int64_t>(torch::stable::get_num_threads(), chunks);
  const int64_t area = static_cast<int64_t>(size) * size;
  const Buffer<T> part_dots(parts * area);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> rows(size * kGramDepth), columns(size * kGramDepth);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t start = part * chunks / parts;
      for (int64_t chunk = start; chunk < (part + 1) * chunks / parts; ++chunk) {
        const bool accumulate = chunk > start;
        read_chunk<T>(x, chunk, nullptr, size, rows.data());
        ops.centre(rows.data(), kGramDepth, means.data() + chunk * kGramDepth,
                   static_cast<int>(x.count), kGramDepth);
        ops.transpose(rows.data(), kGramDepth, columns.data(), size, size, kGramDepth);
        // The upper triangle, in steps that compute little of the lower triangle
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
      for (int64_t j = 0; j < size; ++j) {
        T sum = 0;
        for (int64_t part = 0; part < parts; ++part) {
          sum += part_dots[part * area + (i <= j ? i * size + j : j * size + i)];
        }
        dots[i * size + j] = sum;
      }
      norms[i] = i < x.count ? dots[i * size + i] : std::numeric_limits<T>::infinity();
    }
  });
}

template int64_t read_chunk(const Embeddings&, int64_t, const float*, int, float*);
template int64_t read_chunk(const Embeddings&, int64_t, const double*, int, double*);
template struct Gram<float>;
template struct Gram<double>;

}  // namespace fastrepulse
