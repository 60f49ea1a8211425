// The exact order statistics of all squared distances on the CPU, without storing them.
#pragma once

#include "panel.h"

namespace fastrepulse {

// The `rank`-th smallest, from 0, of |x_i - x_j|^2 over i < j.
template <class T>
T median_sq_distance(const Embeddings& x, int64_t rank);

}  // namespace fastrepulse
