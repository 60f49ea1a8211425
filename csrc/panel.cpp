#include "panel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

namespace fastrepulse {
namespace {

float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits = 0;
  float value;
  if (magnitude >= 0x7c00u) {
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else {
    // The exponent is 15 in half and 127 in single; the product also makes subnormals right
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
  for (int64_t c = begin; c < end; ++c) {
    to[c - begin] = static_cast<T>(convert(from[c])) - offset[c];
  }
}

}  // namespace

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
Buffer<T> mean_embedding(const Embeddings& x) {
  Buffer<T> mean(x.dim);
  const Buffer<T> zero(x.dim);
  std::fill_n(zero.data(), x.dim, T{0});
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / x.count);
  torch::stable::parallel_for(0, x.dim, grain, [&](int64_t begin, int64_t end) {
    std::vector<double> sum(end - begin);
    Buffer<T> row(end - begin);
    for (int64_t i = 0; i < x.count; ++i) {
      read_row(x, i, begin, end, zero.data(), row.data());
      for (int64_t c = 0; c < end - begin; ++c) {
        sum[c] += row[c];
      }
    }
    for (int64_t c = 0; c < end - begin; ++c) {
      mean[begin + c] = static_cast<T>(sum[c] / x.count);
    }
  });
  return mean;
}

template <class T>
void Panel<T>::pack(const Embeddings& x, const T* offset, int64_t first_row, int64_t row_count) {
  first = first_row;
  count = row_count;
  const TileOps<T>& ops = tile_ops<T>();
  torch::stable::parallel_for(0, blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t present = std::min<int64_t>(block, count - b * block);
      T* block_rows = rows.data() + b * block * stride;
      T* block_columns = columns.data() + b * block * dim;
      T* block_norms = norms.data() + b * block;
      for (int64_t i = 0; i < present; ++i) {
        read_row(x, first + b * block + i, 0, dim, offset, block_rows + i * stride);
        std::fill(block_rows + i * stride + dim, block_rows + (i + 1) * stride, T{0});
      }
      std::fill(block_rows + present * stride, block_rows + block * stride, T{0});
      ops.transpose(block_rows, stride, block_columns, block, block, dim);
      ops.squared_norms(block_columns, block, block_norms, dim, block, false);
      std::fill(block_norms + present, block_norms + block, std::numeric_limits<T>::infinity());
    }
  });
}

template <class T>
void Panel<T>::clear_sums() {
  std::fill_n(sums.data(), blocks() * block, T{0});
  std::fill_n(weighted.data(), blocks() * block * stride, T{0});
}

template void read_row(const Embeddings&, int64_t, int64_t, int64_t, const float*, float*);
template void read_row(const Embeddings&, int64_t, int64_t, int64_t, const double*, double*);
template Buffer<float> mean_embedding(const Embeddings&);
template Buffer<double> mean_embedding(const Embeddings&);
template class Panel<float>;
template class Panel<double>;

}  // namespace fastrepulse
