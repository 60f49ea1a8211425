#include "rbf_repulsion.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "gram.h"

namespace fastrepulse {
namespace {

using torch::stable::parallel_for;

template <class T>
T exponent_scale(T bandwidth) {
  constexpr double kLog2E = 1.4426950408889634;
  // Finite even for the smallest bandwidth: a distance of zero must keep the weight one
  return static_cast<T>(std::max(-kLog2E / bandwidth,
                                 static_cast<double>(std::numeric_limits<T>::lowest())));
}

int block_for(int64_t count, int64_t dim) { return count >= 4096 && dim <= 256 ? 128 : 64; }

// One tile: block `a` of `left` against block `b` of `right`. Adds to the left block's sums, and to
// the right's as well if `both`.
template <class T>
void meet(const Panel<T>& left, int64_t a, const Panel<T>& right, int64_t b, bool both,
          T exponent_scale, T* tile) {
  const TileOps<T>& ops = tile_ops<T>();
  const int n = left.block;
  const int stride = static_cast<int>(left.stride);
  ops.multiply(left.rows_of(a), stride, 1, right.columns_of(b), n, tile, n, n,
               static_cast<int>(left.dim), n, false);
  ops.weights(tile, n, left.norms_of(a), right.norms_of(b), nullptr, exponent_scale,
              left.sums_of(a), both ? right.sums_of(b) : nullptr, n, n);
  ops.multiply(tile, n, 1, right.rows_of(b), stride, left.weighted_of(a), stride, n, n, stride,
               true);
  if (both) {
    ops.multiply(tile, 1, n, left.rows_of(a), stride, right.weighted_of(b), stride, n, n, stride,
                 true);
  }
}

// Plays games 0..count-1 of a round; no block is in two of them, so none needs a lock.
template <class T, class Game>
void play_round(int64_t count, int block, const Game& game) {
  parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> tile(block * block);
    for (int64_t i = begin; i < end; ++i) {
      game(i, tile.data());
    }
  });
}

// Every block of a panel meets every other once, and itself, in the rounds of a round-robin
// tournament (the circle method): in a round each block has at most one game.
template <class T>
void meet_all(const Panel<T>& panel, T scale) {
  const int64_t n = panel.blocks();
  play_round<T>(n, panel.block,
                [&](int64_t i, T* tile) { meet(panel, i, panel, i, false, scale, tile); });
  const int64_t circle = round_up(n, 2) - 1;
  for (int64_t round = 0; round < circle; ++round) {
    play_round<T>((circle + 1) / 2, panel.block, [&](int64_t i, T* tile) {
      const int64_t a = (round + i) % circle;
      const int64_t b = i == 0 ? circle : (round - i + circle) % circle;
      if (a < n && b < n) {
        meet(panel, a, panel, b, true, scale, tile);
      }
    });
  }
}

// Every block of one panel meets every block of another.
template <class T>
void meet_all(const Panel<T>& left, const Panel<T>& right, T scale) {
  const int64_t rounds = std::max(left.blocks(), right.blocks());
  for (int64_t round = 0; round < rounds; ++round) {
    play_round<T>(left.blocks(), left.block, [&](int64_t a, T* tile) {
      const int64_t b = (a + round) % rounds;
      if (b < right.blocks()) {
        meet(left, a, right, b, true, scale, tile);
      }
    });
  }
}

// Adds a panel's sums to the results, where `force` still holds the sum of weight times embedding.
template <class T>
void add_sums(const Panel<T>& panel, T* force, T* similarity) {
  parallel_for(0, panel.count, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      similarity[panel.first + i] += panel.sums_of(0)[i];
      T* to = force + (panel.first + i) * panel.dim;
      const T* from = panel.weighted_of(0) + i * panel.stride;
      for (int64_t c = 0; c < panel.dim; ++c) {
        to[c] += from[c];
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
      read_row(x, i, 0, x.dim, offset, row.data());
      T* to = force + i * x.dim;
      for (int64_t c = 0; c < x.dim; ++c) {
        to[c] = 2 / bandwidth * (similarity[i] * row[c] - to[c]);
      }
    }
  });
}

// Few particles of many dimensions: all weights fit in the cache, and threads share out dimensions.
template <class T>
void rbf_repulsion_wide(const Embeddings& x, const T* offset, T bandwidth, T* force,
                        T* similarity) {
  const TileOps<T>& ops = tile_ops<T>();
  Gram<T> gram(x, offset);
  const int n = gram.size;
  const Buffer<T> sums(n);
  std::fill_n(sums.data(), n, T{0});
  parallel_for(0, n / kTileStep, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kTileStep;
    const int rows = static_cast<int>((end - begin) * kTileStep);
    ops.weights(gram.dots.data() + first * n, n, gram.norms.data() + first, gram.norms.data(),
                nullptr, exponent_scale(bandwidth), sums.data() + first, nullptr, rows, n);
  });
  std::copy_n(sums.data(), x.count, similarity);
  parallel_for(0, divide_up(x.dim, kGramDepth), 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> rows(n * kGramDepth), weighted(n * kGramDepth);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kGramDepth;
      const int64_t depth = std::min<int64_t>(kGramDepth, x.dim - first);
      read_chunk(x, first, depth, offset, n, rows.data());
      ops.multiply(gram.dots.data(), n, 1, rows.data(), kGramDepth, weighted.data(), kGramDepth, n,
                   n, kGramDepth, false);
      for (int64_t i = 0; i < x.count; ++i) {
        const T* from = weighted.data() + i * kGramDepth;
        const T* row = rows.data() + i * kGramDepth;
        T* to = force + i * x.dim + first;
        for (int64_t c = 0; c < depth; ++c) {
          to[c] = 2 / bandwidth * (sums[i] * row[c] - from[c]);
        }
      }
    }
  });
}

}  // namespace

template <class T>
void rbf_repulsion(const Embeddings& x, T bandwidth, T* force, T* similarity) {
  const Buffer<T> offset = mean_embedding<T>(x);
  if (is_wide(x)) {
    return rbf_repulsion_wide(x, offset.data(), bandwidth, force, similarity);
  }
  std::fill_n(force, x.count * x.dim, T{0});
  std::fill_n(similarity, x.count, T{0});
  const T scale = exponent_scale(bandwidth);
  const int block = block_for(x.count, x.dim);
  const int64_t rows = panel_rows<T>(x.count, x.dim, block, 2, true);
  Panel<T> left(rows, x.dim, block, true);
  Panel<T> right(rows < x.count ? rows : 0, x.dim, block, true);
  for (int64_t first = 0; first < x.count; first += rows) {
    left.pack(x, offset.data(), first, std::min(rows, x.count - first));
    left.clear_sums();
    meet_all(left, scale);
    for (int64_t second = first + rows; second < x.count; second += rows) {
      right.pack(x, offset.data(), second, std::min(rows, x.count - second));
      right.clear_sums();
      meet_all(left, right, scale);
      add_sums(right, force, similarity);
    }
    add_sums(left, force, similarity);
  }
  finish(x, offset.data(), bandwidth, force, similarity);
}

template <class T>
void rbf_repulsion(const Embeddings& x, const Embeddings& y, const T* weights, T bandwidth,
                   T* force, T* similarity) {
  const TileOps<T>& ops = tile_ops<T>();
  const Buffer<T> offset = mean_embedding<T>(y);
  const T scale = exponent_scale(bandwidth);
  const int block = 64;
  const int64_t x_rows = panel_rows<T>(x.count, x.dim, block, 3, true);
  const int64_t y_rows = panel_rows<T>(y.count, x.dim, block, 3, false);
  Panel<T> queries(x_rows, x.dim, block, true), keys(y_rows, x.dim, block, false);
  const int n = block, dim = static_cast<int>(x.dim), stride = static_cast<int>(queries.stride);
  std::fill_n(force, x.count * x.dim, T{0});
  std::fill_n(similarity, x.count, T{0});
  for (int64_t first = 0; first < x.count; first += x_rows) {
    queries.pack(x, offset.data(), first, std::min(x_rows, x.count - first));
    // Few queries leave threads idle, so that several share the keys of one block of queries
    const int64_t blocks = queries.blocks();
    const int64_t splits = divide_up(torch::stable::get_num_threads(), blocks);
    const Buffer<T> sums(splits * blocks * n), weighted(splits * blocks * n * stride);
    std::fill_n(sums.data(), splits * blocks * n, T{0});
    std::fill_n(weighted.data(), splits * blocks * n * stride, T{0});
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
            ops.multiply(queries.rows_of(a), stride, 1, keys.columns_of(b), n, tile.data(), n, n,
                         dim, n, false);
            ops.weights(tile.data(), n, queries.norms_of(a), keys.norms_of(b),
                        key_weights.data() + b * n, scale, sums.data() + task * n, nullptr, n, n);
            ops.multiply(tile.data(), n, 1, keys.rows_of(b), stride,
                         weighted.data() + task * n * stride, stride, n, n, stride, true);
          }
        }
      });
    }
    queries.clear_sums();
    for (int64_t split = 0; split < splits; ++split) {
      for (int64_t i = 0; i < blocks * n; ++i) {
        queries.sums_of(0)[i] += sums[split * blocks * n + i];
      }
      for (int64_t i = 0; i < blocks * n * stride; ++i) {
        queries.weighted_of(0)[i] += weighted[split * blocks * n * stride + i];
      }
    }
    add_sums(queries, force, similarity);
  }
  finish(x, offset.data(), bandwidth, force, similarity);
}

template void rbf_repulsion(const Embeddings&, float, float*, float*);
template void rbf_repulsion(const Embeddings&, double, double*, double*);
template void rbf_repulsion(const Embeddings&, const Embeddings&, const float*, float, float*,
                            float*);
template void rbf_repulsion(const Embeddings&, const Embeddings&, const double*, double, double*,
                            double*);

}  // namespace fastrepulse
