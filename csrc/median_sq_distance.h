// The exact order statistics of all squared distances on the CPU; those of many are not stored.
#pragma once

#include "gram.h"

namespace fastrepulse {

// A digit of the bits of a distance.
constexpr int kDigitBits = 16;
constexpr int kDigits = 1 << kDigitBits;

// One of several equal parts of all pairs.
struct Part {
  int64_t number;
  int64_t of;
};

// Adds to `histogram` [kDigits] how many |x_i - x_j|^2 of a part have which digit `shift` bits from
// the end, of those whose bits above it are `found`. A distance is the same whatever the parts are.
template <class T>
void count_digits(const Embeddings& x, uint64_t found, int shift, const Part& part,
                  int64_t* histogram);

// The `rank`-th smallest, from 0, of |x_i - x_j|^2 over i < j.
template <class T>
T median_sq_distance(const Embeddings& x, int64_t rank);

// That of the `count` particles of which all dot products are known.
template <class T>
T median_sq_distance(const Gram<T>& gram, int64_t count, int64_t rank);

}  // namespace fastrepulse
