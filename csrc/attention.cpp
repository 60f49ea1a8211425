#include "attention.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "panel.h"

namespace fastrepulse {
namespace {

constexpr int kQueries = 64;
constexpr int kKeys = 128;
// Blocks of queries that share a block of keys once it is packed
constexpr int kShare = 4;

int padded(int64_t size, int step) { return static_cast<int>(round_up(size, step)); }

// Copies `count` tokens to rows of `stride`, with zeros up to `stride` and below, up to `rows`.
void pack(const float* from, int64_t token_stride, int count, int dim, float* to, int stride,
          int rows) {
  for (int i = 0; i < count; ++i) {
    std::copy_n(from + i * token_stride, dim, to + i * stride);
    std::fill(to + i * stride + dim, to + (i + 1) * stride, 0.0f);
  }
  std::fill(to + count * stride, to + rows * stride, 0.0f);
}

struct KeyBlock {
  explicit KeyBlock(int dim) : keys(kKeys * dim), values(kKeys * padded(dim, kTileStep)) {}

  int count = 0;
  Buffer<float> keys;    // [kKeys, dim]
  Buffer<float> values;  // [kKeys, dim padded]
};

// A block of queries, and what it has gathered from the keys so far.
class QueryBlock {
 public:
  explicit QueryBlock(int dim)
      : dim(dim),
        stride(padded(dim, kTileStep)),
        columns(dim * kQueries),
        maxima(kQueries),
        sums(kQueries),
        factors(kQueries),
        weighted(kQueries * stride) {}

  void start(const float* q, int64_t token_stride, int tokens) {
    count = tokens;
    cols = padded(count, kTileStep);
    // The memory of the sums has room for the rows until they are columns
    pack(q, token_stride, count, dim, weighted.data(), dim, cols);
    ops.transpose(weighted.data(), dim, columns.data(), kQueries, cols, dim);
    std::fill_n(weighted.data(), cols * stride, 0.0f);
    // Finite, so that a scale of zero leaves it out as well
    std::fill_n(maxima.data(), cols, std::numeric_limits<float>::lowest());
    std::fill_n(sums.data(), cols, 0.0f);
  }

  // The tile [keys, queries] has queries side by side: the softmax takes many at a time.
  void meet(const KeyBlock& block, float exponent_scale, float* tile) {
    ops.multiply(block.keys.data(), dim, 1, columns.data(), kQueries, tile, kQueries,
                 padded(block.count, kRowStep), dim, cols, false);
    ops.softmax_weights(tile, kQueries, exponent_scale, maxima.data(), sums.data(), factors.data(),
                        block.count, cols);
    ops.scale_rows(weighted.data(), stride, factors.data(), cols, stride);
    ops.multiply(tile, 1, kQueries, block.values.data(), stride, weighted.data(), stride, cols,
                 block.count, stride, true);
  }

  void finish(float* out, int64_t token_stride) {
    for (int i = 0; i < count; ++i) {
      factors[i] = 1 / sums[i];
    }
    ops.scale_rows(weighted.data(), stride, factors.data(), count, stride);
    for (int i = 0; i < count; ++i) {
      std::copy_n(weighted.data() + i * stride, dim, out + i * token_stride);
    }
  }

 private:
  const TileOps<float>& ops = tile_ops<float>();
  int dim;
  int stride;
  int count = 0;
  int cols = 0;
  Buffer<float> columns;                // [dim, kQueries]
  Buffer<float> maxima, sums, factors;  // [kQueries]
  Buffer<float> weighted;               // [kQueries, stride]: sum of weight times value
};

}  // namespace

void attention(const Heads& q, const Heads& k, const Heads& v, const AttentionShape& shape,
               float scale, float* out) {
  constexpr float kLog2E = 1.44269504f;
  const int dim = static_cast<int>(shape.dim);
  const int64_t groups = divide_up(shape.queries, kShare * kQueries);
  const int64_t tasks = shape.batch * shape.heads * groups;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    std::vector<QueryBlock> blocks;
    for (int i = 0; i < kShare; ++i) {
      blocks.emplace_back(dim);
    }
    KeyBlock keys(dim);
    const Buffer<float> tile(kKeys * kQueries);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t h = task / groups % shape.heads, b = task / groups / shape.heads;
      const int64_t first = task % groups * kShare * kQueries;
      const int64_t last = std::min(first + kShare * kQueries, shape.queries);
      const int64_t used = divide_up(last - first, kQueries);
      const auto tokens = [&](const Heads& x, int64_t i) {
        return x.data + b * x.batch_stride + h * x.head_stride + i * x.token_stride;
      };
      for (int64_t a = 0; a < used; ++a) {
        const int64_t i = first + a * kQueries;
        blocks[a].start(tokens(q, i), q.token_stride, std::min<int64_t>(kQueries, last - i));
      }
      for (int64_t j = 0; j < shape.keys; j += kKeys) {
        keys.count = std::min<int64_t>(kKeys, shape.keys - j);
        pack(tokens(k, j), k.token_stride, keys.count, dim, keys.keys.data(), dim,
             padded(keys.count, kRowStep));
        pack(tokens(v, j), v.token_stride, keys.count, dim, keys.values.data(),
             padded(dim, kTileStep), keys.count);
        for (int64_t a = 0; a < used; ++a) {
          blocks[a].meet(keys, scale * kLog2E, tile.data());
        }
      }
      for (int64_t a = 0; a < used; ++a) {
        const int64_t i = first + a * kQueries;
        blocks[a].finish(out + ((b * shape.queries + i) * shape.heads + h) * dim,
                         shape.heads * dim);
      }
    }
  });
}

}  // namespace fastrepulse
