// The RBF repulsion at the bandwidth of the median heuristic, on the CPU.
#pragma once

#include "cpu/pairwise/panel.h"

namespace fastrepulse {

// `rbf_repulsion` at h = median |x_i - x_j|^2 / log N. The bandwidth is at least `kBandwidthFloor`
// times the variance, and 1 if all particles are equal. For few particles the median and the force
// share the dot products.
template <class T>
void median_rbf_repulsion(const Embeddings& x, T* force, T* similarity, T* bandwidth);

}  // namespace fastrepulse
