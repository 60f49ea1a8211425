// The RBF repulsion on the CPU.
#pragma once

#include "cpu/pairwise/gram.h"

namespace fastrepulse {

// force[i] = (2 / h) sum_j w_j k_ij (x_i - y_j) and similarity[i] = sum_j w_j k_ij, with k_ij =
// exp(-|x_i - y_j|^2 / h). Without `weights`, w_j = 1. Extra memory is bounded for any number of
// particles. For many particles of one set the result has the same bits for any number of threads.
// For few particles in many dimensions, and for two sets, the rounding may differ.

// All pairs of x, each visited once.
template <class T>
void rbf_repulsion(const Embeddings& x, T bandwidth, T* force, T* similarity);

// All pairs of few particles with known dot products. Overwrites the dot products by the weights.
template <class T>
void rbf_repulsion(const Embeddings& x, Gram<T>& gram, T bandwidth, T* force, T* similarity);

// x against y.
template <class T>
void rbf_repulsion(const Embeddings& x, const Embeddings& y, const T* weights, T bandwidth,
                   T* force, T* similarity);

}  // namespace fastrepulse
