#include "cpu/layers/conv3x3.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/simd/tile_ops.h"
#include "cpu/sizes.h"

namespace fastrepulse {
namespace {

// Tiles, input channels (at most) and output channels that a thread multiplies at once
constexpr int64_t kTiles = 128;
constexpr int64_t kDepth = 320;
constexpr int64_t kColumns = 32;
// The most memory for transformed inputs, unless `kTiles` tiles need more
constexpr int64_t kInputBytes = 64 << 20;

constexpr int kOutputs = kOutputSide * kOutputSide;
constexpr int kTaps = 9;

class Convolution {
 public:
  Convolution(const float* in, const float* weight, const float* bias, const ConvShape& shape,
              float* out)
      : in(in),
        weight(weight),
        out(out),
        shape(shape),
        ins(shape.in_channels),
        outs(shape.out_channels),
        down(divide_up(shape.height, kOutputSide)),
        across(divide_up(shape.width, kOutputSide)),
        tiles(shape.batch * down * across),
        depth(round_up(divide_up(ins, divide_up(ins, kDepth)), kTileStep)),
        chunks(divide_up(ins, depth)),
        zeros(std::max(ins, outs)),
        bias(bias ? bias : zeros.data()) {
    std::fill_n(zeros.data(), std::max(ins, outs), 0.0f);
    const int64_t affordable = kInputBytes / (kPoints * ins * sizeof(float)) / kTiles;
    const int64_t parts = std::clamp<int64_t>(affordable, 1, torch::stable::get_num_threads());
    capacity = std::min(parts * kTiles, round_up(tiles, kRowStep));
    input_step = capacity * depth + kApart;
    inputs = Buffer<float>(chunks * kPoints * input_step);
  }

  void run() {
    for (first = 0; first < tiles; first += capacity) {
      count = std::min(capacity, tiles - first);
      torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
          transform(tile);
        }
      });
      const int64_t groups = divide_up(count, kTiles);
      const int64_t size = round_up(divide_up(count, groups), kRowStep);
      const int64_t tasks = groups * divide_up(outs, kColumns);
      torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        const Products products(depth);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t tile = task % groups * size;
          multiply(tile, std::min(size, count - tile), task / groups * kColumns, products);
        }
      });
    }
  }

 private:
  // Padding between consecutive points. Without it they would share one set of the cache and evict
  // each other.
  static constexpr int64_t kApart = kTileStep;

  struct Products {
    explicit Products(int64_t depth)
        : filter_step(depth * kColumns + kApart),
          sum_step(kTiles * kColumns + kApart),
          filters(kPoints * filter_step),
          sums(kPoints * sum_step),
          outside(kColumns) {}

    int64_t filter_step;
    int64_t sum_step;
    Buffer<float> filters;  // [kPoints, depth, kColumns]
    Buffer<float> sums;     // [kPoints, kTiles, kColumns]
    Buffer<float> outside;  // [kColumns]
  };

  // Sets the addresses of the pixels [side, side] of a tile. The tile begins `margin` pixels before
  // its outputs. Pixels beyond the image get the address `outside`.
  template <class T>
  void locate(T* images, int64_t channels, int64_t tile, int side, int margin, T* outside,
              T** pixels) const {
    const int64_t n = (first + tile) / across / down;
    const int64_t top = (first + tile) / across % down * kOutputSide - margin;
    const int64_t left = (first + tile) % across * kOutputSide - margin;
    for (int64_t y = top; y < top + side; ++y) {
      for (int64_t x = left; x < left + side; ++x) {
        const bool inside = y >= 0 && y < shape.height && x >= 0 && x < shape.width;
        const int64_t pixel = (n * shape.height + y) * shape.width + x;
        *pixels++ = inside ? images + pixel * channels : outside;
      }
    }
  }

  void transform(int64_t tile) const {
    const float* pixels[kPoints];
    locate(in, ins, tile, kInputSide, 1, static_cast<const float*>(zeros.data()), pixels);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      winograd.input(pixels, chunk * depth, kOutputSide * ins, inputs_of(chunk, tile), input_step,
                     std::min(depth, ins - chunk * depth));
    }
  }

  void multiply(int64_t tile, int64_t rows, int64_t column, const Products& to) const {
    const int cols = std::min(kColumns, outs - column);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t channel = chunk * depth;
      const int present = std::min(depth, ins - channel);
      winograd.filters(weight + column * kTaps * ins + channel, kTaps * ins, ins,
                       to.filters.data(), kColumns, to.filter_step, present, cols);
      for (int point = 0; point < kPoints; ++point) {
        // Rows beyond the last tile are arbitrary and their products are not used
        ops.multiply(inputs_of(chunk, tile) + point * input_step, depth, 1,
                     to.filters.data() + point * to.filter_step, kColumns,
                     to.sums.data() + point * to.sum_step, kColumns, round_up(rows, kRowStep),
                     present, cols, chunk > 0);
      }
    }
    float* pixels[kOutputs];
    for (int64_t i = 0; i < rows; ++i) {
      locate(out + column, outs, tile + i, kOutputSide, 0, to.outside.data(), pixels);
      winograd.output(to.sums.data() + i * kColumns, to.sum_step, bias + column, pixels,
                      kOutputSide * outs, cols);
    }
  }

  float* inputs_of(int64_t chunk, int64_t tile) const {
    return inputs.data() + chunk * kPoints * input_step + tile * depth;
  }

  const TileOps<float>& ops = tile_ops<float>();
  const WinogradOps& winograd = instruction_set().winograd;
  const float* in;
  const float* weight;
  float* out;
  const ConvShape shape;
  const int64_t ins, outs;
  const int64_t down, across, tiles;  // tiles of an image [down, across], and of all images
  const int64_t depth, chunks;
  const Buffer<float> zeros;
  const float* bias;
  int64_t capacity, input_step;
  int64_t first = 0, count = 0;
  Buffer<float> inputs;  // [chunks, kPoints, capacity, depth]: of tiles [first, first + count)
};

}  // namespace

void conv3x3(const float* in, const float* weight, const float* bias, const ConvShape& shape,
             float* out) {
  Convolution(in, weight, bias, shape, out).run();
}

}  // namespace fastrepulse
