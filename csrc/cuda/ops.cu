// The CUDA side of the operators that ops.cpp declares, on PyTorch's stable ABI.
//
// No symbol of PyTorch's CUDA libraries is used, so the library also loads under a CPU build of
// PyTorch. The device guard belongs to the device-independent interface, and the stream function is
// looked up by name.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "median_rbf_repulsion.cuh"
#include "median_sq_distance.cuh"
#include "rbf_repulsion.cuh"

namespace gpu = fastrepulse::gpu;

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA error: ", cudaGetErrorString(error));
}

// The current stream of a device, by PyTorch's C interface. nativeHandle() exists only from 2.13
// on.
cudaStream_t current_stream(int32_t device) {
  using Get = int32_t (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get != nullptr && get(device, &stream) == 0, "PyTorch has no CUDA stream here");
  return static_cast<cudaStream_t>(stream);
}

// Launches on the current stream of a tensor's device, which is the current device meanwhile.
class Launch {
 public:
  explicit Launch(const Tensor& x)
      : guard_(x.get_device_index()),
        stream_(current_stream(x.get_device_index())) {}

  template <typename... Parameters, typename... Args>
  void operator()(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_size,
                  Args... args) {
    kernel<<<grid, threads, shared_size, stream_>>>(args...);
    check(cudaGetLastError());
  }

  template <typename... Parameters, typename... Args>
  void cooperative(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_size,
                   Args... args) {
    std::tuple<Parameters...> values(args...);
    std::apply(
        [&](auto&... value) {
          void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
          check(cudaLaunchCooperativeKernel(kernel, grid, threads, pointers, shared_size, stream_));
        },
        values);
  }

  // The number of blocks that the device holds at once. Also raises the kernel's limit of shared
  // memory, always to the device's maximum, since another thread may launch with more than this
  // one.
  template <typename... Parameters>
  int64_t capacity(void (*kernel)(Parameters...), unsigned threads, size_t shared_size) {
    int device, processors, blocks, most;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(threads),
                                                        shared_size));
    return static_cast<int64_t>(processors) * blocks;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Calls `call` with a pointer of the device type that matches the dtype.
template <typename Call>
void with_dtype(const Tensor& x, Call call) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return call(static_cast<const float*>(x.const_data_ptr()));
    case ScalarType::Half:
      return call(static_cast<const __half*>(x.const_data_ptr()));
    case ScalarType::BFloat16:
      return call(static_cast<const __nv_bfloat16*>(x.const_data_ptr()));
    default:
      STD_TORCH_CHECK(false, "x must be float32, float16 or bfloat16");
  }
}

void check_rows(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.numel() > 0, name,
                  " must be [N, d], contiguous and not empty");
}

void check_floats(const Tensor& values, const Tensor& x, int64_t count, const char* name) {
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.is_contiguous() &&
                      values.numel() == count && values.device() == x.device(),
                  name, " must be ", count, " contiguous float32 on the device of x");
}

Tensor new_floats(const Tensor& x, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(x, shape, ScalarType::Float);
}

float* floats(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

std::tuple<Tensor, Tensor> rbf_repulsion(Tensor x, Tensor bandwidth, std::optional<Tensor> y,
                                         std::optional<Tensor> weights) {
  check_rows(x, "x");
  const Tensor columns = y.value_or(x);
  check_rows(columns, "y");
  STD_TORCH_CHECK(columns.scalar_type() == x.scalar_type() && columns.size(1) == x.size(1) &&
                      columns.device() == x.device(),
                  "y must be like x in dtype, device and d");
  check_floats(bandwidth, x, 1, "bandwidth");
  if (weights) check_floats(*weights, x, columns.size(0), "weights");

  const int64_t n = x.size(0), m = columns.size(0), d = x.size(1);
  Launch launch(x);
  Tensor force = new_floats(x, {n, d}), similarity = new_floats(x, {n});
  with_dtype(x, [&](auto* rows) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(rows)>>;
    const gpu::RbfRepulsion<T> op{rows,
                                  static_cast<const T*>(columns.const_data_ptr()),
                                  weights ? floats(*weights) : nullptr,
                                  floats(bandwidth),
                                  n,
                                  m,
                                  d,
                                  floats(force),
                                  floats(similarity)};
    const Tensor workspace = new_floats(x, {op.workspace_size()});
    op.run(launch, floats(workspace));
  });
  return {force, similarity};
}

Tensor median_sq_distance(Tensor x, int64_t rank) {
  check_rows(x, "x");
  const int64_t n = x.size(0);
  STD_TORCH_CHECK(0 <= rank && rank < n * (n - 1) / 2, "rank must be below the number of pairs");
  Launch launch(x);
  Tensor value = new_floats(x, {});
  with_dtype(x, [&](auto* rows) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(rows)>>;
    const gpu::MedianSqDistance<T> op{rows, n, x.size(1)};
    const Tensor workspace = torch::stable::new_empty(x, {op.workspace_size()}, ScalarType::Byte);
    op.run(launch, rank, static_cast<gpu::MedianWorkspace*>(workspace.mutable_data_ptr()),
           floats(value));
  });
  return value;
}

std::tuple<Tensor, Tensor, Tensor> median_rbf_repulsion(Tensor x) {
  check_rows(x, "x");
  const int64_t n = x.size(0), d = x.size(1);
  STD_TORCH_CHECK(2 <= n && n <= gpu::kMaxMedianParticles, "x must have 2 to ",
                  gpu::kMaxMedianParticles, " rows, got ", n);
  Launch launch(x);
  Tensor force = new_floats(x, {n, d}), similarity = new_floats(x, {n});
  Tensor bandwidth = new_floats(x, {});
  with_dtype(x, [&](auto* rows) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(rows)>>;
    const int64_t capacity = launch.capacity(gpu::median_rbf_repulsion<T>, gpu::kMedianThreads,
                                             gpu::median_shared_size(static_cast<int>(n)));
    const int64_t blocks = gpu::median_blocks(d, capacity);
    const int64_t size = gpu::median_workspace_size(static_cast<int>(n), blocks);
    const Tensor workspace = new_floats(x, {size});
    gpu::run_median_rbf_repulsion(launch, rows, static_cast<int>(n), d, blocks, floats(workspace),
                                  floats(force), floats(similarity), floats(bandwidth));
  });
  return {force, similarity, bandwidth};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrepulse, CUDA, m) {
  m.impl("rbf_repulsion_kernel", TORCH_BOX(&rbf_repulsion));
  m.impl("median_sq_distance_kernel", TORCH_BOX(&median_sq_distance));
  m.impl("median_rbf_repulsion_kernel", TORCH_BOX(&median_rbf_repulsion));
}
