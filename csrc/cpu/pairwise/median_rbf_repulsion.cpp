#include "cpu/pairwise/median_rbf_repulsion.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <numeric>

#include "cpu/pairwise/gram.h"
#include "cpu/pairwise/median_sq_distance.h"
#include "cpu/pairwise/rbf_repulsion.h"
#include "median.h"

namespace fastrepulse {
namespace {

template <class T>
T bandwidth_from(T median, double variance, int64_t count) {
  return bandwidth_of(median / static_cast<T>(std::log(static_cast<double>(count))),
                      static_cast<T>(kBandwidthFloor * variance));
}

// The mean squared distance from the mean embedding.
template <class T>
double variance_of(const Embeddings& x, const T* offset) {
  const Buffer<double> squares(x.count);
  torch::stable::parallel_for(0, x.count, grain_of(x.dim), [&](int64_t begin, int64_t end) {
    const Buffer<T> row(x.dim);
    for (int64_t i = begin; i < end; ++i) {
      read_rows(x, i, 1, 0, x.dim, offset, row.data(), 0);
      squares[i] = std::inner_product(row.data(), row.data() + x.dim, row.data(), 0.0);
    }
  });
  return std::accumulate(squares.data(), squares.data() + x.count, 0.0) / x.count;
}

}  // namespace

template <class T>
void median_rbf_repulsion(const Embeddings& x, T* force, T* similarity, T* bandwidth) {
  const int64_t lower_median = (x.count * (x.count - 1) / 2 - 1) / 2;
  if (are_few(x)) {
    Gram<T> gram(x);
    const T* norms = gram.norms.data();
    *bandwidth = bandwidth_from(median_sq_distance(gram, x.count, lower_median),
                                std::accumulate(norms, norms + x.count, 0.0) / x.count, x.count);
    return rbf_repulsion(x, gram, *bandwidth, force, similarity);
  }
  const Buffer<T> offset = mean_embedding<T>(x);
  *bandwidth = bandwidth_from(median_sq_distance<T>(x, lower_median), variance_of(x, offset.data()),
                              x.count);
  rbf_repulsion(x, *bandwidth, force, similarity);
}

template void median_rbf_repulsion(const Embeddings&, float*, float*, float*);
template void median_rbf_repulsion(const Embeddings&, double*, double*, double*);

}  // namespace fastrepulse
