// C interface of the kernels for CPU arrays. It uses the launch code of the GPU build.
// dtype: 0 float32, 1 float16, 2 bfloat16.
#include <algorithm>

#include "cuda_runtime_shim.h"
// After the shim, which defines the CUDA keywords
#include "median_rbf_repulsion.cuh"
#include "median_sq_distance.cuh"
#include "rbf_repulsion.cuh"

namespace fastrepulse::gpu {
alignas(16) unsigned char shared_memory[kSharedCapacity];
}

namespace gpu = fastrepulse::gpu;

namespace {

template <typename Call>
void with_dtype(int dtype, const void* x, Call call) {
  if (dtype == 0) call(static_cast<const float*>(x));
  if (dtype == 1) call(static_cast<const __half*>(x));
  if (dtype == 2) call(static_cast<const __nv_bfloat16*>(x));
}

}  // namespace

extern "C" {

void set_seed(unsigned seed) { shim::machine.random.seed(seed); }

int64_t rbf_repulsion_workspace(int64_t n, int64_t m, int64_t d, int64_t panel_columns) {
  const gpu::RbfRepulsion<float> op{nullptr, nullptr, nullptr, nullptr, n,
                                    m,       d,       nullptr, nullptr, panel_columns};
  return op.workspace_size();
}

void rbf_repulsion(int dtype, const void* x, const void* y, const float* weights,
                   const float* bandwidth, int64_t n, int64_t m, int64_t d, int64_t panel_columns,
                   float* force, float* similarity, float* workspace) {
  shim::Launch launch;
  with_dtype(dtype, x, [&](auto* rows) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(rows)>>;
    const gpu::RbfRepulsion<T> op{
        rows,         static_cast<const T*>(y), weights, bandwidth, n, m, d, force, similarity,
        panel_columns};
    op.run(launch, workspace);
  });
}

int64_t median_sq_distance_workspace(int64_t n, int64_t d) {
  return gpu::MedianSqDistance<float>{nullptr, n, d}.workspace_size();
}

void median_sq_distance(int dtype, const void* x, int64_t n, int64_t d, int64_t rank,
                        void* workspace, float* value) {
  shim::Launch launch;
  with_dtype(dtype, x, [&](auto* rows) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(rows)>>;
    gpu::MedianSqDistance<T>{rows, n, d}.run(launch, rank,
                                             static_cast<gpu::MedianWorkspace*>(workspace), value);
  });
}

int64_t median_rbf_repulsion_blocks(int64_t d, int64_t capacity) {
  return gpu::median_blocks(d, capacity);
}

int64_t median_rbf_repulsion_workspace(int64_t n, int64_t blocks) {
  return gpu::median_workspace_size(static_cast<int>(n), blocks);
}

void median_rbf_repulsion(int dtype, const void* x, int64_t n, int64_t d, int64_t blocks,
                          float* workspace, float* force, float* similarity, float* bandwidth) {
  shim::Launch launch;
  with_dtype(dtype, x, [&](auto* rows) {
    gpu::run_median_rbf_repulsion(launch, rows, static_cast<int>(n), d, blocks, workspace, force,
                                  similarity, bandwidth);
  });
}

}  // extern "C"
