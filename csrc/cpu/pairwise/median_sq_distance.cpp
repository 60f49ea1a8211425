#include "cpu/pairwise/median_sq_distance.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <mutex>

#include "median.h"

namespace fastrepulse {
namespace {

using torch::stable::parallel_for;

template <class T>
struct Radix;
template <>
struct Radix<float> {
  using Bits = uint32_t;
};
template <>
struct Radix<double> {
  using Bits = uint64_t;
};
template <class T>
using Bits = typename Radix<T>::Bits;

template <class T>
struct Prefix {
  Bits<T> found = 0;  // the digits found so far
  int shift = Digits<8 * sizeof(T), kDigitWidth>::shift(0);

  // The least and the greatest value with this prefix
  T least() const { return value(found << (shift + kDigitWidth)); }
  T greatest() const {
    return value((found << (shift + kDigitWidth)) |
                 ((Bits<T>{1} << (shift + kDigitWidth)) - 1));
  }
  bool first() const { return shift + kDigitWidth == 8 * sizeof(T); }
  static T value(Bits<T> bits) {
    T v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  }
  static Bits<T> bits(T value) {
    Bits<T> b;
    std::memcpy(&b, &value, sizeof b);
    return b;
  }
};

// The first digit of infinity. The digits of finite numbers are lower and those of NaN are higher.
template <class T>
constexpr Bits<T> kInfinity = sizeof(T) == sizeof(float) ? 0x7f80 : 0x7ff0;

template <class T>
void count_row(const T* row, int64_t begin, int64_t end, const Prefix<T>& prefix,
               int64_t* histogram) {
  if (prefix.first()) {
    for (int64_t j = begin; j < end; ++j) {
      ++histogram[Prefix<T>::bits(row[j]) >> prefix.shift];
    }
    return;
  }
  // Few values match, so sixteen at a time are checked without branches first
  const T least = prefix.least(), greatest = prefix.greatest();
  for (int64_t j = begin; j < end;) {
    const int64_t stop = std::min<int64_t>(j + 16, end);
    int matches = 0;
    for (int64_t k = j; k < stop; ++k) {
      matches += (row[k] >= least) & (row[k] <= greatest);
    }
    for (; matches > 0 && j < stop; ++j) {
      const Bits<T> bits = Prefix<T>::bits(row[j]);
      if (row[j] >= least && row[j] <= greatest) {
        ++histogram[(bits >> prefix.shift) & (kBins - 1)];
      }
    }
    j = stop;
  }
}

// Counts the pairs of block `a` of `left` and block `b` of `right`.
template <class T>
void count_tile(const Panel<T>& left, int64_t a, const Panel<T>& right, int64_t b,
                const Prefix<T>& prefix, T* tile, int64_t* histogram) {
  const TileOps<T>& ops = tile_ops<T>();
  constexpr int n = kBlock;
  ops.multiply(left.columns_of(a), 1, n, right.columns_of(b), n, tile, n, n,
               static_cast<int>(left.dim), n, false);
  ops.squared_distances(tile, n, left.norms_of(a), right.norms_of(b), n, n);
  const int64_t rows = std::min<int64_t>(n, left.count - a * n);
  const int64_t cols = std::min<int64_t>(n, right.count - b * n);
  const bool same = &left == &right && a == b;
  for (int64_t i = 0; i < rows; ++i) {
    count_row(tile + i * n, same ? i + 1 : 0, cols, prefix, histogram);
  }
}

// Counts a part of the pairs of two panels, or of one.
template <class T>
void count_panels(const Panel<T>& left, const Panel<T>& right, const Prefix<T>& prefix,
                  const Part& part, int64_t* histogram) {
  std::mutex adding;
  const int64_t tiles = count_tiles(left, right);
  const int64_t first = tiles * part.number / part.of, last = tiles * (part.number + 1) / part.of;
  parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> counts(kBins);
    const Buffer<T> tile(kBlock * kBlock);
    visit_tiles(left, right, begin, end, [&](int64_t a, int64_t b) {
      count_tile(left, a, right, b, prefix, tile.data(), counts.data());
    });
    const std::lock_guard<std::mutex> lock(adding);
    for (int64_t digit = 0; digit < kBins; ++digit) {
      histogram[digit] += counts[digit];
    }
  });
}

// Counts a part of all pairs.
template <class T>
void count_pairs(const Embeddings& x, const T* offset, const Prefix<T>& prefix, const Part& part,
                 int64_t* histogram) {
  const int64_t rows = panel_rows<T>(x.count, x.dim, false);
  visit_panel_pairs(x, offset, rows, false, [&](const Panel<T>& left, const Panel<T>& right) {
    count_panels(left, right, prefix, part, histogram);
  });
}

}  // namespace

template <class T>
T median_sq_distance(const Gram<T>& gram, int64_t count, int64_t rank) {
  std::vector<Bits<T>> distances;
  distances.reserve(count * (count - 1) / 2);
  const Buffer<T> row(gram.size);
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(gram.dots.data() + i * gram.size, gram.size, row.data());
    tile_ops<T>().squared_distances(row.data(), gram.size, gram.norms.data() + i, gram.norms.data(),
                                    1, gram.size);
    std::transform(row.data() + i + 1, row.data() + count, std::back_inserter(distances),
                   Prefix<T>::bits);
  }
  // Bits are ordered even if some numbers are NaN
  std::nth_element(distances.begin(), distances.begin() + rank, distances.end());
  return Prefix<T>::value(distances[rank]);
}

template <class T>
T median_sq_distance(const Embeddings& x, int64_t rank) {
  if (are_few(x)) {
    return median_sq_distance(Gram<T>(x), x.count, rank);
  }
  const Buffer<T> offset = mean_embedding<T>(x);
  for (int64_t c = 0; c < x.dim; ++c) {
    if (!std::isfinite(offset[c])) {
      return std::numeric_limits<T>::quiet_NaN();
    }
  }
  Prefix<T> prefix;
  for (;; prefix.shift -= kDigitWidth) {
    std::vector<int64_t> histogram(kBins);
    count_pairs(x, offset.data(), prefix, {0, 1}, histogram.data());
    Bits<T> digit = 0;
    for (; rank >= histogram[digit]; ++digit) {
      rank -= histogram[digit];
    }
    if (prefix.first() && digit >= kInfinity<T>) {
      using Limits = std::numeric_limits<T>;
      return digit == kInfinity<T> ? Limits::infinity() : Limits::quiet_NaN();
    }
    prefix.found = prefix.found << kDigitWidth | digit;
    if (prefix.shift == 0) {
      return Prefix<T>::value(prefix.found);
    }
  }
}

template <class T>
void count_digits(const Embeddings& x, uint64_t found, int shift, const Part& part,
                  int64_t* histogram) {
  const Buffer<T> offset = mean_embedding<T>(x);
  count_pairs(x, offset.data(), Prefix<T>{static_cast<Bits<T>>(found), shift}, part, histogram);
}

template void count_digits<float>(const Embeddings&, uint64_t, int, const Part&, int64_t*);
template void count_digits<double>(const Embeddings&, uint64_t, int, const Part&, int64_t*);
template float median_sq_distance(const Embeddings&, int64_t);
template double median_sq_distance(const Embeddings&, int64_t);
template float median_sq_distance(const Gram<float>&, int64_t, int64_t);
template double median_sq_distance(const Gram<double>&, int64_t, int64_t);

}  // namespace fastrepulse
