// Attention on the CPU, without gradients.
#pragma once

#include <cstdint>

namespace fastrepulse {

// [B, heads, tokens, dim], dim contiguous and the rest strided.
struct Heads {
  const float* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t token_stride;
};

struct AttentionShape {
  int64_t batch;
  int64_t heads;
  int64_t queries;
  int64_t keys;
  int64_t dim;
};

// out[b][i][h] = sum_j softmax_j(scale q_i . k_j) v_j, contiguous [B, queries, heads, dim];
// scale >= 0. The softmax is taken block by block of keys (Milakov & Gimelshein 2018,
// arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135), so that the memory of a thread does not
// grow with the number of tokens.
void attention(const Heads& q, const Heads& k, const Heads& v, const AttentionShape& shape,
               float scale, float* out);

}  // namespace fastrepulse
