// The RBF repulsion on the CPU.
#pragma once

#include "cpu/pairwise/gram.h"

namespace fastrepulse {

// force[i] = (2 / h) sum_j w_j k_ij (x_i - y_j) and similarity[i] = sum_j w_j k_ij, with
// k_ij = exp(-|x_i - y_j|^2 / h). Without `weights`, w_j = 1. Extra memory is bounded, whatever the
// number of particles. The number of threads makes no difference to many particles of one set; to
// few in many dimensions and to a second set it does in rounding.

// All pairs of x, each visited once.
template <class T>
void rbf_repulsion(const Embeddings& x, T bandwidth, T* force, T* similarity);

// All pairs of few, of which all dot products are known; turns these into the weights.
template <class T>
void rbf_repulsion(const Embeddings& x, Gram<T>& gram, T bandwidth, T* force, T* similarity);

// x against y.
template <class T>
void rbf_repulsion(const Embeddings& x, const Embeddings& y, const T* weights, T bandwidth,
                   T* force, T* similarity);

}  // namespace fastrepulse
