#include "activations.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "panel.h"

namespace fastrepulse {
namespace {

// Pixels of which the moments are added up in single precision, and tasks where samples are few
constexpr int64_t kChunk = 256;

// What becomes of the channels of one sample: out = silu(scale in + offset).
class Normalised {
 public:
  explicit Normalised(const NormShape& shape)
      : shape(shape),
        chunks(divide_up(shape.pixels, kChunk)),
        sums(chunks * shape.channels),
        squares(chunks * shape.channels),
        scales(shape.channels),
        offsets(shape.channels) {}

  // Of the differences from the first pixel, so that squares of large numbers do not cancel
  void gather(const float* in, int64_t chunk) {
    const int channels = static_cast<int>(shape.channels);
    const int64_t first = chunk * kChunk;
    const int rows = static_cast<int>(std::min(kChunk, shape.pixels - first));
    float* sum = sums.data() + chunk * channels;
    float* square = squares.data() + chunk * channels;
    std::fill_n(sum, channels, 0.0f);
    std::fill_n(square, channels, 0.0f);
    ops.moments(in + first * channels, in, sum, square, rows, channels);
  }

  void finish(const float* in, const float* shift, const float* weight, const float* bias,
              double epsilon) {
    const int64_t width = shape.channels / shape.groups;
    for (int64_t group = 0; group < shape.groups; ++group) {
      // The mean of the group and the squares around it, from those of its channels
      double mean = 0, squares_around = 0;
      for (int64_t i = 0; i < width; ++i) {
        const int64_t c = group * width + i;
        const auto [own_mean, own_squares] = channel(in, shift, c);
        const double difference = own_mean - mean;
        mean += difference / (i + 1);
        squares_around += own_squares + difference * difference * i / (i + 1) * shape.pixels;
      }
      const double deviation = std::sqrt(squares_around / (width * shape.pixels) + epsilon);
      for (int64_t c = group * width; c < (group + 1) * width; ++c) {
        const double scale = weight[c] / deviation;
        scales[c] = static_cast<float>(scale);
        offsets[c] = static_cast<float>(bias[c] + scale * ((shift ? shift[c] : 0.0) - mean));
      }
    }
  }

  void write(const float* in, float* out, int64_t chunk) const {
    const int channels = static_cast<int>(shape.channels);
    const int64_t first = chunk * kChunk;
    const int rows = static_cast<int>(std::min(kChunk, shape.pixels - first));
    ops.scale_silu(in + first * channels, scales.data(), offsets.data(), out + first * channels,
                   rows, channels);
  }

  const NormShape shape;
  const int64_t chunks;

 private:
  struct Moments {
    double mean;
    double squares;
  };

  Moments channel(const float* in, const float* shift, int64_t c) const {
    double sum = 0, square = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      sum += sums[chunk * shape.channels + c];
      square += squares[chunk * shape.channels + c];
    }
    const double difference = sum / shape.pixels;
    return {in[c] + (shift ? shift[c] : 0.0) + difference, square - sum * difference};
  }

  const ActivationOps& ops = instruction_set().activations;
  Buffer<float> sums, squares;    // [chunks, channels]
  Buffer<float> scales, offsets;  // [channels]
};

}  // namespace

void geglu(const float* x, int64_t rows, int64_t cols, float* out) {
  const ActivationOps& ops = instruction_set().activations;
  torch::stable::parallel_for(0, rows, divide_up(4096, cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = x + i * 2 * cols;
      ops.gate(row, row + cols, out + i * cols, static_cast<int>(cols));
    }
  });
}

void group_norm_silu(const float* in, const float* shift, const float* weight, const float* bias,
                     const NormShape& shape, double epsilon, float* out) {
  using Loop = std::function<void(int64_t)>;
  // Runs through the samples of a range, each chunk by chunk in a way that is given
  const auto samples = [&](int64_t begin, int64_t end, const auto& each) {
    Normalised sample(shape);
    for (int64_t n = begin; n < end; ++n) {
      const float* pixels = in + n * shape.pixels * shape.channels;
      float* to = out + n * shape.pixels * shape.channels;
      each(sample.chunks, [&](int64_t chunk) { sample.gather(pixels, chunk); });
      sample.finish(pixels, shift ? shift + n * shape.channels : nullptr, weight, bias, epsilon);
      each(sample.chunks, [&](int64_t chunk) { sample.write(pixels, to, chunk); });
    }
  };
  const auto alone = [](int64_t count, const Loop& body) {
    for (int64_t i = 0; i < count; ++i) {
      body(i);
    }
  };
  const auto together = [](int64_t count, const Loop& body) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        body(i);
      }
    });
  };
  // A thread reads what it has just read: a sample fits in its cache
  if (shape.batch >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    torch::stable::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
      samples(begin, end, alone);
    });
  } else {
    samples(0, shape.batch, together);
  }
}

}  // namespace fastrepulse
