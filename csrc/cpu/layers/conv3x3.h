// Convolutions of 3x3 pixels on the CPU, without gradients.
#pragma once

#include <cstdint>

namespace fastrepulse {

struct ConvShape {
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t in_channels;
  int64_t out_channels;
};

// out[n, y, x, o] = bias[o] + sum_{i, j, c} weight[o, i, j, c] in[n, y + i - 1, x + j - 1, c], with
// zeros around the image. Channels are multiples of `kTileStep`. Winograd's minimal filtering
// F(4x4, 3x3) needs a quarter of the multiplications (Lavin & Gray 2015, arXiv:1509.09308). Filters
// are transformed at every call, block by block, so that memory does not grow with the layer.
void conv3x3(const float* in, const float* weight, const float* bias, const ConvShape& shape,
             float* out);

}  // namespace fastrepulse
