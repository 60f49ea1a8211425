#include "cpu/pairwise/panel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

namespace fastrepulse {
namespace {

using torch::stable::parallel_for;

float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits = 0;
  float value;
  if (magnitude >= 0x7c00u) {
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else {
    // The exponent bias is 15 in float16 and 127 in float32. The product also handles subnormals.
    bits = magnitude << 13;
    std::memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    std::memcpy(&bits, &value, sizeof value);
  }
  bits |= sign;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float bfloat16_to_float(uint16_t brain) {
  const uint32_t bits = static_cast<uint32_t>(brain) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T, class Source, class Convert>
void convert_row(const Source* from, int64_t begin, int64_t end, const T* offset, T* to,
                 Convert convert) {
  if (offset) {
    for (int64_t c = begin; c < end; ++c) {
      to[c - begin] = static_cast<T>(convert(from[c])) - offset[c];
    }
  } else {
    std::transform(from + begin, from + end, to, convert);
  }
}

template <class T>
void read_row(const Embeddings& x, int64_t row, int64_t begin, int64_t end, const T* offset,
              T* to) {
  const int64_t at = row * x.dim;
  switch (x.element) {
    case Element::kFloat:
      return convert_row(static_cast<const float*>(x.data) + at, begin, end, offset, to,
                         [](float v) { return v; });
    case Element::kDouble:
      return convert_row(static_cast<const double*>(x.data) + at, begin, end, offset, to,
                         [](double v) { return v; });
    case Element::kHalf:
      return convert_row(static_cast<const uint16_t*>(x.data) + at, begin, end, offset, to,
                         half_to_float);
    case Element::kBFloat16:
      return convert_row(static_cast<const uint16_t*>(x.data) + at, begin, end, offset, to,
                         bfloat16_to_float);
  }
}

template <class T>
constexpr Element kElement = sizeof(T) == sizeof(float) ? Element::kFloat : Element::kDouble;

}  // namespace

template <class T>
void read_rows(const Embeddings& x, int64_t first, int64_t rows, int64_t begin, int64_t end,
               const T* offset, T* to, int64_t to_row) {
  if (offset && x.element == kElement<T>) {
    const T* from = static_cast<const T*>(x.data) + first * x.dim + begin;
    return tile_ops<T>().subtract(from, x.dim, offset + begin, to, to_row, static_cast<int>(rows),
                                  static_cast<int>(end - begin));
  }
  for (int64_t i = 0; i < rows; ++i) {
    read_row(x, first + i, begin, end, offset, to + i * to_row);
  }
}

template <class T>
void read_block(const Embeddings& x, int64_t first, int64_t rows, int64_t begin, int64_t end,
                const T* offset, T* to, int64_t block_rows, int64_t block_cols) {
  const int64_t cols = end - begin;
  read_rows(x, first, rows, begin, end, offset, to, block_cols);
  for (int64_t i = 0; cols < block_cols && i < rows; ++i) {
    std::fill(to + i * block_cols + cols, to + (i + 1) * block_cols, T{0});
  }
  std::fill(to + rows * block_cols, to + block_rows * block_cols, T{0});
}

template <class T>
Buffer<T> mean_embedding(const Embeddings& x) {
  Buffer<T> mean(x.dim);
  parallel_for(0, x.dim, grain_of(x.count), [&](int64_t begin, int64_t end) {
    const int64_t cols = end - begin;
    // Differences from the first embedding keep rounding small for embeddings close together
    const Buffer<T> pivot(x.dim), row(cols), sum(cols);
    read_rows<T>(x, 0, 1, begin, end, nullptr, pivot.data() + begin, 0);
    std::fill_n(sum.data(), cols, T{0});
    for (int64_t i = 1; i < x.count; ++i) {
      read_rows(x, i, 1, begin, end, pivot.data(), row.data(), 0);
      tile_ops<T>().add(row.data(), 0, sum.data(), 0, 1, static_cast<int>(cols));
    }
    for (int64_t c = 0; c < cols; ++c) {
      mean[begin + c] = pivot[begin + c] + sum[c] / x.count;
    }
  });
  return mean;
}

template <class T>
Panel<T>::Panel(int64_t capacity, int64_t dim, bool with_rows)
    : dim(dim),
      capacity(round_up(capacity, kBlock)),
      width(tile_ops<T>().width),
      columns(this->capacity * dim),
      norms(this->capacity),
      slices(with_rows ? this->capacity * round_up(dim, width) : 0) {}

template <class T>
void Panel<T>::pack(const Embeddings& x, const T* offset, int64_t first_row, int64_t row_count) {
  first = first_row;
  count = row_count;
  const TileOps<T>& ops = tile_ops<T>();
  const bool with_rows = slices.size() > 0;
  parallel_for(0, blocks(), 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> passing(with_rows ? 0 : kBlock * width);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t present = std::min<int64_t>(kBlock, count - b * kBlock);
      T* block_columns = columns.data() + b * kBlock * dim;
      for (int64_t c = 0; c < dim; c += width) {
        const int64_t deep = std::min<int64_t>(width, dim - c);
        T* slice = with_rows ? slices.data() + c * capacity + b * kBlock * width : passing.data();
        read_block(x, first + b * kBlock, present, c, c + deep, offset, slice, kBlock, width);
        ops.transpose(slice, width, block_columns + c * kBlock, kBlock, kBlock,
                      static_cast<int>(deep));
      }
      T* block_norms = norms.data() + b * kBlock;
      ops.squared_norms(block_columns, kBlock, block_norms, static_cast<int>(dim), kBlock, false);
      std::fill(block_norms + present, block_norms + kBlock, std::numeric_limits<T>::infinity());
    }
  });
}

template <class T>
void Panel<T>::add_weighted(int64_t b, const T* weights, ptrdiff_t row, ptrdiff_t col,
                            int64_t column, int64_t cols, T* sums, int64_t sums_row,
                            bool accumulate) const {
  const TileOps<T>& ops = tile_ops<T>();
  for (int64_t j = 0; j < cols; j += width) {
    const T* slice = slices.data() + (column + j) * capacity + b * kBlock * width;
    ops.multiply(weights, row, col, slice, width, sums + j, sums_row, kBlock, kBlock,
                 static_cast<int>(std::min<int64_t>(width, cols - j)), accumulate);
  }
}

template void read_rows(const Embeddings&, int64_t, int64_t, int64_t, int64_t, const float*, float*,
                        int64_t);
template void read_rows(const Embeddings&, int64_t, int64_t, int64_t, int64_t, const double*,
                        double*, int64_t);
template void read_block(const Embeddings&, int64_t, int64_t, int64_t, int64_t, const float*,
                         float*, int64_t, int64_t);
template void read_block(const Embeddings&, int64_t, int64_t, int64_t, int64_t, const double*,
                         double*, int64_t, int64_t);
template Buffer<float> mean_embedding(const Embeddings&);
template Buffer<double> mean_embedding(const Embeddings&);
template class Panel<float>;
template class Panel<double>;

}  // namespace fastrepulse
