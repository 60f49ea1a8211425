// Exact order statistics of all squared distances on the CPU. The distances of many particles are
// recomputed in every pass and never stored.
#pragma once

#include "cpu/pairwise/gram.h"

namespace fastrepulse {

// The bits of a distance are found in digits of this width; kernels/shared.py uses the same.
constexpr int kDigitWidth = 16;
constexpr int kBins = 1 << kDigitWidth;

// One of several equal parts of all pairs.
struct Part {
  int64_t number;
  int64_t of;
};

// Counts one digit of the distances |x_i - x_j|^2 in a part of the pairs: adds to `histogram`
// [kBins]. The digit begins `shift` bits from the end. Only distances whose higher bits equal
// `found` count. A distance has the same bits in every division into parts.
template <class T>
void count_digits(const Embeddings& x, uint64_t found, int shift, const Part& part,
                  int64_t* histogram);

// The `rank`-th smallest, from 0, of |x_i - x_j|^2 over i < j.
template <class T>
T median_sq_distance(const Embeddings& x, int64_t rank);

// The same for `count` particles with known dot products.
template <class T>
T median_sq_distance(const Gram<T>& gram, int64_t count, int64_t rank);

}  // namespace fastrepulse
