#include "cpu/pairwise/rbf_repulsion.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

namespace fastrepulse {
namespace {

using torch::stable::parallel_for;

template <class T>
T exponent_scale(T bandwidth) {
  constexpr double kLog2E = 1.4426950408889634;
  // Finite even for the smallest bandwidth, so that the weight at distance zero is one
  return static_cast<T>(std::max(-kLog2E / bandwidth,
                                 static_cast<double>(std::numeric_limits<T>::lowest())));
}

// The most rows of a panel, so that the weights between two panels stay in the cache.
constexpr int64_t kMostRows = 1024;

// Dimensions that one task sums.
constexpr int kColumns = 64;

// The weights between the blocks of two panels, and their sums over each row and column of a tile.
// Within one panel the blocks below the diagonal are left out, so every pair is visited once.
template <class T>
class Weights {
 public:
  explicit Weights(int64_t capacity)
      : most_blocks(divide_up(capacity, kBlock)),
        tiles(most_blocks * most_blocks * kBlock * kBlock),
        row_sums(most_blocks * most_blocks * kBlock),
        col_sums(most_blocks * most_blocks * kBlock) {}

  T* tile(int64_t a, int64_t b) const { return tiles.data() + at(a, b) * kBlock; }
  T* row_sums_of(int64_t a, int64_t b) const { return row_sums.data() + at(a, b); }
  T* col_sums_of(int64_t a, int64_t b) const { return col_sums.data() + at(a, b); }

 private:
  int64_t at(int64_t a, int64_t b) const { return (a * most_blocks + b) * kBlock; }

  int64_t most_blocks;
  Buffer<T> tiles;     // [blocks, blocks, kBlock, kBlock]
  Buffer<T> row_sums;  // [blocks, blocks, kBlock]
  Buffer<T> col_sums;  // [blocks, blocks, kBlock]
};

// Computes the weights between two panels, or within one. Every tile is a task.
template <class T>
void weigh(const Panel<T>& left, const Panel<T>& right, T scale, const Weights<T>& weights) {
  const TileOps<T>& ops = tile_ops<T>();
  constexpr int n = kBlock;
  parallel_for(0, count_tiles(left, right), 1, [&](int64_t begin, int64_t end) {
    visit_tiles(left, right, begin, end, [&](int64_t a, int64_t b) {
      T *tile = weights.tile(a, b), *rows = weights.row_sums_of(a, b);
      T* cols = &left == &right && a == b ? nullptr : weights.col_sums_of(a, b);
      std::fill_n(rows, n, T{0});
      if (cols) {
        std::fill_n(cols, n, T{0});
      }
      ops.multiply(left.columns_of(a), 1, n, right.columns_of(b), n, tile, n, n,
                   static_cast<int>(left.dim), n, false);
      ops.weights(tile, n, left.norms_of(a), right.norms_of(b), nullptr, scale, rows, cols, n, n);
    });
  });
}

// Adds the weighted sums over the particles of `from` to block `a` of `to`. `force` holds the sum
// of weight times embedding; `cols` of its dimensions are computed, from `column` on. The
// similarity is added along with column 0. From block `upright` on, the rows of the weights belong
// to `to`; before that block, the columns do.
template <class T>
void gather(const Panel<T>& to, int64_t a, const Panel<T>& from, int64_t upright,
            const Weights<T>& weights, int64_t column, int64_t cols, T* sums, T* force,
            T* similarity) {
  constexpr int n = kBlock;
  const int64_t first = to.first + a * n, rows = std::min<int64_t>(n, to.count - a * n);
  for (int64_t b = 0; b < from.blocks(); ++b) {
    const bool is_upright = b >= upright;
    from.add_weighted(b, is_upright ? weights.tile(a, b) : weights.tile(b, a), is_upright ? n : 1,
                      is_upright ? 1 : n, column, cols, sums, kColumns, b > 0);
    const T* parts = is_upright ? weights.row_sums_of(a, b) : weights.col_sums_of(b, a);
    for (int64_t i = 0; column == 0 && i < rows; ++i) {
      similarity[first + i] += parts[i];
    }
  }
  tile_ops<T>().add(sums, kColumns, force + first * to.dim + column, to.dim, static_cast<int>(rows),
                    static_cast<int>(std::min(cols, to.dim - column)));
}

// Computes all pairs between two panels, or within one panel.
template <class T>
void add_pairs(const Panel<T>& left, const Panel<T>& right, T scale, const Weights<T>& weights,
               T* force, T* similarity) {
  weigh(left, right, scale, weights);
  const bool same = &left == &right;
  const int64_t blocks = left.blocks() + (same ? 0 : right.blocks());
  parallel_for(0, blocks * divide_up(left.dim, kColumns), 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> sums(kBlock * kColumns);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t a = i % blocks, column = i / blocks * kColumns;
      const int64_t cols = std::min<int64_t>(kColumns, left.padded() - column);
      if (a < left.blocks()) {
        gather(left, a, right, same ? a : 0, weights, column, cols, sums.data(), force, similarity);
      } else {
        gather(right, a - left.blocks(), left, left.blocks(), weights, column, cols, sums.data(),
               force, similarity);
      }
    }
  });
}

// Turns the sum of weight times embedding into the force.
template <class T>
void finish(const Embeddings& x, const T* offset, T bandwidth, T* force, const T* similarity) {
  parallel_for(0, x.count, 256, [&](int64_t begin, int64_t end) {
    Buffer<T> row(x.dim);
    for (int64_t i = begin; i < end; ++i) {
      read_rows(x, i, 1, 0, x.dim, offset, row.data(), 0);
      tile_ops<T>().forces(force + i * x.dim, 0, similarity + i, row.data(), 0, 2 / bandwidth, 1,
                           static_cast<int>(x.dim));
    }
  });
}

}  // namespace

template <class T>
void rbf_repulsion(const Embeddings& x, Gram<T>& gram, T bandwidth, T* force, T* similarity) {
  const TileOps<T>& ops = tile_ops<T>();
  const int n = gram.size, count = static_cast<int>(x.count);
  const Buffer<T> sums(n);
  std::fill_n(sums.data(), n, T{0});
  parallel_for(0, n / kTileStep, grain_of(kTileStep * n), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kTileStep;
    const int rows = static_cast<int>((end - begin) * kTileStep);
    ops.weights(gram.dots.data() + first * n, n, gram.norms.data() + first, gram.norms.data(),
                nullptr, exponent_scale(bandwidth), sums.data() + first, nullptr, rows, n);
  });
  std::copy_n(sums.data(), x.count, similarity);
  parallel_for(0, divide_up(x.dim, kGramDepth), 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> rows(n * kGramDepth), weighted(n * kGramDepth);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t depth = read_chunk(x, chunk, gram.means.data(), n, rows.data());
      ops.multiply(gram.dots.data(), n, 1, rows.data(), kGramDepth, weighted.data(), kGramDepth, n,
                   n, kGramDepth, false);
      ops.forces(weighted.data(), kGramDepth, sums.data(), rows.data(), kGramDepth, 2 / bandwidth,
                 count, kGramDepth);
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(weighted.data() + i * kGramDepth, depth,
                    force + i * x.dim + chunk * kGramDepth);
      }
    }
  });
}

template <class T>
void rbf_repulsion(const Embeddings& x, T bandwidth, T* force, T* similarity) {
  if (are_few(x)) {
    Gram<T> gram(x);
    return rbf_repulsion(x, gram, bandwidth, force, similarity);
  }
  const Buffer<T> offset = mean_embedding<T>(x);
  std::fill_n(force, x.count * x.dim, T{0});
  std::fill_n(similarity, x.count, T{0});
  const T scale = exponent_scale(bandwidth);
  const int64_t rows = panel_rows<T>(x.count, x.dim, true, kMostRows);
  const Weights<T> weights(rows);
  visit_panel_pairs(x, offset.data(), rows, true, [&](const Panel<T>& left, const Panel<T>& right) {
    add_pairs(left, right, scale, weights, force, similarity);
  });
  finish(x, offset.data(), bandwidth, force, similarity);
}

template <class T>
void rbf_repulsion(const Embeddings& x, const Embeddings& y, const T* weights, T bandwidth,
                   T* force, T* similarity) {
  const TileOps<T>& ops = tile_ops<T>();
  const Buffer<T> offset = mean_embedding<T>(y);
  const T scale = exponent_scale(bandwidth);
  const int64_t x_rows = panel_rows<T>(x.count, x.dim, true);
  const int64_t y_rows = panel_rows<T>(y.count, x.dim, true);
  Panel<T> queries(x_rows, x.dim, false), keys(y_rows, x.dim, true);
  constexpr int n = kBlock;
  const int64_t padded = keys.padded();
  std::fill_n(force, x.count * x.dim, T{0});
  std::fill_n(similarity, x.count, T{0});
  for (int64_t first = 0; first < x.count; first += x_rows) {
    queries.pack(x, offset.data(), first, std::min(x_rows, x.count - first));
    // With few queries, several threads share the keys of one block of queries
    const int64_t blocks = queries.blocks();
    const int64_t splits = divide_up(torch::stable::get_num_threads(), blocks);
    const Buffer<T> sums(splits * blocks * n), weighted(splits * blocks * n * padded);
    std::fill_n(sums.data(), splits * blocks * n, T{0});
    std::fill_n(weighted.data(), splits * blocks * n * padded, T{0});
    for (int64_t second = 0; second < y.count; second += y_rows) {
      keys.pack(y, offset.data(), second, std::min(y_rows, y.count - second));
      const Buffer<T> key_weights(keys.blocks() * n);
      std::fill_n(key_weights.data(), keys.blocks() * n, weights ? T{0} : T{1});
      if (weights) {
        std::copy_n(weights + second, keys.count, key_weights.data());
      }
      parallel_for(0, splits * blocks, 1, [&](int64_t begin, int64_t end) {
        const Buffer<T> tile(n * n);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t a = task % blocks, split = task / blocks;
          for (int64_t b = split; b < keys.blocks(); b += splits) {
            ops.multiply(queries.columns_of(a), 1, n, keys.columns_of(b), n, tile.data(), n, n,
                         static_cast<int>(x.dim), n, false);
            ops.weights(tile.data(), n, queries.norms_of(a), keys.norms_of(b),
                        key_weights.data() + b * n, scale, sums.data() + task * n, nullptr, n, n);
            keys.add_weighted(b, tile.data(), n, 1, 0, padded, weighted.data() + task * n * padded,
                              padded, true);
          }
        }
      });
    }
    parallel_for(0, queries.count, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* to = force + (first + i) * x.dim;
        for (int64_t split = 0; split < splits; ++split) {
          const int64_t row = split * blocks * n + i;
          similarity[first + i] += sums[row];
          for (int64_t c = 0; c < x.dim; ++c) {
            to[c] += weighted[row * padded + c];
          }
        }
      }
    });
  }
  finish(x, offset.data(), bandwidth, force, similarity);
}

template void rbf_repulsion(const Embeddings&, float, float*, float*);
template void rbf_repulsion(const Embeddings&, double, double*, double*);
template void rbf_repulsion(const Embeddings&, Gram<float>&, float, float*, float*);
template void rbf_repulsion(const Embeddings&, Gram<double>&, double, double*, double*);
template void rbf_repulsion(const Embeddings&, const Embeddings&, const float*, float, float*,
                            float*);
template void rbf_repulsion(const Embeddings&, const Embeddings&, const double*, double, double*,
                            double*);

}  // namespace fastrepulse
