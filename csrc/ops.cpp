// Declares the native library's operators and implements them on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "cpu/layers/conv3x3.h"
#include "cpu/pairwise/median_rbf_repulsion.h"
#include "cpu/pairwise/median_sq_distance.h"
#include "cpu/pairwise/rbf_repulsion.h"

namespace fastrepulse {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Embeddings embeddings_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "embeddings must be contiguous [N, d]");
  Element element = Element::kFloat;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      break;
    case ScalarType::Double:
      element = Element::kDouble;
      break;
    case ScalarType::Half:
      element = Element::kHalf;
      break;
    case ScalarType::BFloat16:
      element = Element::kBFloat16;
      break;
    default:
      STD_TORCH_CHECK(false, "embeddings must be floating-point");
  }
  return {x.const_data_ptr(), element, x.size(0), x.size(1)};
}

ScalarType accumulator(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
void run_rbf_repulsion(const Tensor& x, const Tensor& bandwidth, const std::optional<Tensor>& y,
                       const std::optional<Tensor>& weights, Tensor& force, Tensor& similarity) {
  const T h = *static_cast<const T*>(bandwidth.const_data_ptr());
  T* f = static_cast<T*>(force.mutable_data_ptr());
  T* s = static_cast<T*>(similarity.mutable_data_ptr());
  const Embeddings queries = embeddings_of(x);
  if (!y && !weights) {
    return rbf_repulsion(queries, h, f, s);
  }
  const T* w = weights ? static_cast<const T*>(weights->const_data_ptr()) : nullptr;
  rbf_repulsion(queries, y ? embeddings_of(*y) : queries, w, h, f, s);
}

std::tuple<Tensor, Tensor> rbf_repulsion_kernel(Tensor x, Tensor bandwidth, std::optional<Tensor> y,
                                                std::optional<Tensor> weights) {
  const ScalarType dtype = accumulator(x);
  STD_TORCH_CHECK(bandwidth.numel() == 1 && bandwidth.scalar_type() == dtype,
                  "bandwidth must be one number of the accumulator's dtype");
  STD_TORCH_CHECK(!y || (y->scalar_type() == x.scalar_type() && y->size(1) == x.size(1)),
                  "y must be [M, d] of the dtype of x");
  const int64_t others = (y ? *y : x).size(0);
  STD_TORCH_CHECK(!weights || (weights->scalar_type() == dtype && weights->numel() == others &&
                               weights->is_contiguous()),
                  "weights must be [M] of the accumulator's dtype");
  Tensor force = torch::stable::new_empty(x, {x.size(0), x.size(1)}, dtype);
  Tensor similarity = torch::stable::new_empty(x, {x.size(0)}, dtype);
  if (dtype == ScalarType::Double) {
    run_rbf_repulsion<double>(x, bandwidth, y, weights, force, similarity);
  } else {
    run_rbf_repulsion<float>(x, bandwidth, y, weights, force, similarity);
  }
  return {force, similarity};
}

Tensor median_sq_distance_kernel(Tensor x, int64_t rank) {
  const int64_t pairs = x.size(0) * (x.size(0) - 1) / 2;
  STD_TORCH_CHECK(rank >= 0 && rank < pairs, "rank must be that of a pair");
  Tensor median = torch::stable::new_empty(x, {}, accumulator(x));
  if (accumulator(x) == ScalarType::Double) {
    *static_cast<double*>(median.mutable_data_ptr()) =
        median_sq_distance<double>(embeddings_of(x), rank);
  } else {
    *static_cast<float*>(median.mutable_data_ptr()) =
        median_sq_distance<float>(embeddings_of(x), rank);
  }
  return median;
}

std::tuple<Tensor, Tensor, Tensor> median_rbf_repulsion_kernel(Tensor x) {
  STD_TORCH_CHECK(x.size(0) >= 2, "a median distance needs at least 2 embeddings");
  const ScalarType dtype = accumulator(x);
  Tensor force = torch::stable::new_empty(x, {x.size(0), x.size(1)}, dtype);
  Tensor similarity = torch::stable::new_empty(x, {x.size(0)}, dtype);
  Tensor bandwidth = torch::stable::new_empty(x, {}, dtype);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    median_rbf_repulsion(embeddings_of(x), static_cast<T*>(force.mutable_data_ptr()),
                         static_cast<T*>(similarity.mutable_data_ptr()),
                         static_cast<T*>(bandwidth.mutable_data_ptr()));
  };
  dtype == ScalarType::Double ? run(double{}) : run(float{});
  return {force, similarity, bandwidth};
}

Tensor count_digits_kernel(Tensor x, int64_t found, int64_t shift, int64_t part, int64_t parts) {
  const bool float64 = accumulator(x) == ScalarType::Double;
  STD_TORCH_CHECK(shift >= 0 && shift % kDigitWidth == 0 && shift < (float64 ? 64 : 32),
                  "shift must be that of a digit");
  STD_TORCH_CHECK(part >= 0 && part < parts, "part must be one of parts");
  Tensor counts = torch::stable::new_empty(x, {kBins}, ScalarType::Long);
  int64_t* histogram = static_cast<int64_t*>(counts.mutable_data_ptr());
  std::fill_n(histogram, kBins, 0);
  const auto count = float64 ? count_digits<double> : count_digits<float>;
  count(embeddings_of(x), static_cast<uint64_t>(found), static_cast<int>(shift), {part, parts},
        histogram);
  return counts;
}

Tensor conv3x3_kernel(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  for (const Tensor& each : {x, weight}) {
    STD_TORCH_CHECK(each.dim() == 4 && each.is_contiguous() &&
                        each.scalar_type() == ScalarType::Float,
                    "x and weight must be contiguous [N, H, W, C] and [O, 3, 3, C] of float32");
  }
  const ConvShape shape{x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0)};
  STD_TORCH_CHECK(weight.size(1) == 3 && weight.size(2) == 3 &&
                      weight.size(3) == shape.in_channels,
                  "weight must be [O, 3, 3, C]");
  STD_TORCH_CHECK(shape.in_channels % kTileStep == 0 && shape.out_channels % kTileStep == 0,
                  "channels must be multiples of 16");
  STD_TORCH_CHECK(!bias || (bias->scalar_type() == ScalarType::Float && bias->is_contiguous() &&
                            bias->numel() == shape.out_channels),
                  "bias must be contiguous [O] of float32");
  Tensor out = torch::stable::new_empty(
      x, {shape.batch, shape.height, shape.width, shape.out_channels});
  conv3x3(static_cast<const float*>(x.const_data_ptr()),
          static_cast<const float*>(weight.const_data_ptr()),
          bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr, shape,
          static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

// The instruction set that the CPU kernels use on this processor.
std::string cpu_capability() { return instruction_set().name; }

}  // namespace
}  // namespace fastrepulse

STABLE_TORCH_LIBRARY(fastrepulse, m) {
  m.def(
      "rbf_repulsion_kernel(Tensor x, Tensor bandwidth, Tensor? y, Tensor? weights)"
      " -> (Tensor, Tensor)");
  m.def("median_sq_distance_kernel(Tensor x, int rank) -> Tensor");
  m.def("count_digits_kernel(Tensor x, int found, int shift, int part, int parts) -> Tensor");
  m.def("median_rbf_repulsion_kernel(Tensor x) -> (Tensor, Tensor, Tensor)");
  m.def("conv3x3_kernel(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("cpu_capability() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastrepulse, CPU, m) {
  m.impl("rbf_repulsion_kernel", TORCH_BOX(&fastrepulse::rbf_repulsion_kernel));
  m.impl("median_sq_distance_kernel", TORCH_BOX(&fastrepulse::median_sq_distance_kernel));
  m.impl("median_rbf_repulsion_kernel", TORCH_BOX(&fastrepulse::median_rbf_repulsion_kernel));
  m.impl("count_digits_kernel", TORCH_BOX(&fastrepulse::count_digits_kernel));
  m.impl("conv3x3_kernel", TORCH_BOX(&fastrepulse::conv3x3_kernel));
}

STABLE_TORCH_LIBRARY_IMPL(fastrepulse, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&fastrepulse::cpu_capability));
}
