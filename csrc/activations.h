// Activations and what goes before them on the CPU, without gradients.
#pragma once

#include <cstdint>

namespace fastrepulse {

// out[i][j] = x[i][j] gelu(x[i][cols + j]), x [rows, 2 cols]; cols is a multiple of `kTileStep`
// (Shazeer 2020, arXiv:2002.05202).
void geglu(const float* x, int64_t rows, int64_t cols, float* out);

struct NormShape {
  int64_t batch;
  int64_t pixels;
  int64_t channels;  // a multiple of `kTileStep`, and of `groups`
  int64_t groups;
};

// out = silu(group_norm(in + shift)), in [batch, pixels, channels], shift [batch, channels] or null
// (Wu & He 2018, arXiv:1803.08494).
void group_norm_silu(const float* in, const float* shift, const float* weight, const float* bias,
                     const NormShape& shape, double epsilon, float* out);

}  // namespace fastrepulse
