// The RBF repulsion at the bandwidth of the median heuristic, on the CPU.
#pragma once

#include "cpu/pairwise/panel.h"

namespace fastrepulse {

// `rbf_repulsion` at h = median |x_i - x_j|^2 / log N, which is at least `kBandwidthFloor` of the
// variance, and 1 where all are the same. Few particles have their dot products taken once for
// both.
template <class T>
void median_rbf_repulsion(const Embeddings& x, T* force, T* similarity, T* bandwidth);

}  // namespace fastrepulse
