// Force and similarity of the RBF kernel, in memory linear in N:
//   similarity_i = sum_j w_j k_ij,   force_i = (2 / h) (similarity_i x_i - sum_j w_j k_ij y_j).
//
// Rows of d <= 64 stay in registers, one row per thread, and no pair is stored. Wider rows go
// through panels of the kernel matrix. Parts of a sum are added in a fixed order, so the result
// always has the same bits.
#pragma once

#include "rbf_panels.cuh"

namespace fastrepulse::gpu {

constexpr int kNarrow = 64;
constexpr int kRowThreads = 128;
constexpr int kElementThreads = 256;

template <int D>
struct NarrowColumns {
  static constexpr int kCount = 2048 / D;
  Float4 y[kCount][D / 4];
  float weight[kCount];
};

// D is d rounded up. The padding is 0 in x and in y, so it adds nothing to a distance.
template <typename T, int D>
__global__ void __launch_bounds__(kRowThreads)
    narrow_repulsion(const T* x, const T* y, const float* weights, const float* bandwidth,
                     int64_t n, int64_t m, int d, int64_t columns_per_split,
                     float* attraction,    // [splits, N, d], sum_j w_j k_ij y_j
                     float* similarity) {  // [splits, N]
  using Columns = NarrowColumns<D>;
  auto& columns = shared_as<Columns>();
  const RbfKernel kernel(*bandwidth);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  const int64_t begin = blockIdx.y * columns_per_split;
  const int64_t end = begin + columns_per_split < m ? begin + columns_per_split : m;

  float row[D], sums[D] = {}, total = 0;
#pragma unroll
  for (int k = 0; k < D; ++k) row[k] = i < n && k < d ? static_cast<float>(x[i * d + k]) : 0.0f;

  for (int64_t first = begin; first < end; first += Columns::kCount) {
    const int count =
        end - first < Columns::kCount ? static_cast<int>(end - first) : Columns::kCount;
    for (int e = threadIdx.x; e < count * D; e += kRowThreads) {
      const int j = e / D, k = e % D;
      columns.y[j][k / 4].at[k % 4] = k < d ? static_cast<float>(y[(first + j) * d + k]) : 0.0f;
    }
    for (int j = threadIdx.x; j < count; j += kRowThreads)
      columns.weight[j] = weights ? weights[first + j] : 1.0f;
    __syncthreads();
    for (int j = 0; j < count; ++j) {
      // Four chains, so that one addition does not wait for another
      Float4 distance = {};
#pragma unroll
      for (int k = 0; k < D; ++k)
        distance.at[k % 4] =
            SquaredDifference{}(row[k], columns.y[j][k / 4].at[k % 4], distance.at[k % 4]);
      const float sq_distance =
          (distance.at[0] + distance.at[1]) + (distance.at[2] + distance.at[3]);
      const float weight = columns.weight[j] * kernel(sq_distance);
      total += weight;
#pragma unroll
      for (int k = 0; k < D; ++k) sums[k] = fmaf(weight, columns.y[j][k / 4].at[k % 4], sums[k]);
    }
    __syncthreads();
  }
  if (i >= n) return;
  const int64_t out = blockIdx.y * n + i;
  similarity[out] = total;
#pragma unroll
  for (int k = 0; k < D; ++k)
    if (k < d) attraction[out * d + k] = sums[k];
}

static __global__ void __launch_bounds__(kElementThreads)
    sum_splits(const float* parts,  // [splits, count]
               int64_t splits, int64_t count, bool add, float* sum) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
  if (e >= count) return;
  sum[e] = (add ? sum[e] : 0.0f) + sum_parts(parts + e, splits, count);
}

template <typename T>
__global__ void __launch_bounds__(kElementThreads)
    force_from_attraction(const T* x, const float* bandwidth, const float* similarity, int64_t n,
                          int64_t d,
                          float* force) {  // [N, d]; holds the attraction on entry
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
  if (e >= n * d) return;
  const float pull = similarity[e / d] * static_cast<float>(x[e]) - force[e];
  force[e] = RbfKernel(*bandwidth).force_scale() * pull;
}

// The arguments of one call. Pointers are to device memory, and y is x if there is one set only.
template <typename T>
struct RbfRepulsion {
  const T* x;              // [N, d]
  const T* y;              // [M, d]
  const float* weights;    // [M] or null for ones
  const float* bandwidth;  // scalar
  int64_t n, m, d;
  float* force;       // [N, d]
  float* similarity;  // [N]
  // Columns of a panel of the kernel matrix if d > 64; tests set fewer
  int64_t panel_columns = 8192;

  // Workspace of `run` in floats, below 2^24, which is 64 MB.
  int64_t workspace_size() const {
    if (d > kNarrow) return WidePlan(n, m, d, panel_columns).workspace_size(d);
    const Split split = narrow_split();
    return split.parts > 1 ? split.parts * n * (d + 1) : 0;
  }

  template <typename Launch>
  void run(Launch& launch, float* workspace) const {
    if (d > kNarrow)
      run_wide(launch, workspace);
    else if (d > 32)
      run_narrow<64>(launch, workspace);
    else if (d > 16)
      run_narrow<32>(launch, workspace);
    else if (d > 4)
      run_narrow<16>(launch, workspace);
    else
      run_narrow<4>(launch, workspace);
    const int64_t blocks = ceil_div(n * d, kElementThreads);
    launch(force_from_attraction<T>, dim3(blocks), kElementThreads, 0, x, bandwidth, similarity, n,
           d, force);
  }

 private:
  Split narrow_split() const { return {m, ceil_div(n, kRowThreads), 64, 1}; }

  template <int D, typename Launch>
  void run_narrow(Launch& launch, float* workspace) const {
    const Split split = narrow_split();
    const bool whole = split.parts == 1;
    float* attractions = whole ? force : workspace;
    float* similarities = whole ? similarity : workspace + split.parts * n * d;
    launch(narrow_repulsion<T, D>, dim3(ceil_div(n, kRowThreads), split.parts), kRowThreads,
           sizeof(NarrowColumns<D>), x, y, weights, bandwidth, n, m, d, split.length, attractions,
           similarities);
    if (whole) return;
    add_up(launch, attractions, split.parts, n * d, false, force);
    add_up(launch, similarities, split.parts, n, false, similarity);
  }

  template <typename Launch>
  void run_wide(Launch& launch, float* panel) const {
    const WidePlan plan(n, m, d, panel_columns);
    float* parts = panel + plan.panel_size();
    for (int64_t i = 0; i < n; i += plan.rows)
      for (int64_t j = 0; j < m; j += plan.columns) {
        const int64_t rows = std::min(plan.rows, n - i), columns = std::min(plan.columns, m - j);
        const int64_t row_tiles = ceil_div(rows, kTile);
        const int64_t splits = ceil_div(columns, plan.sums.length);
        // Sums that are not split are written straight to the output
        const bool whole = plan.sums.parts == 1, add = j > 0;
        launch(sq_distance_parts<T>, dim3(ceil_div(columns, kTile), row_tiles, plan.depth.parts),
               kTileThreads, sizeof(TilePair), x + i * d, y + j * d, rows, columns, d,
               plan.depth.length, panel);
        launch(panel_weights, dim3(rows), kRowSumThreads, sizeof(RowSums),
               weights ? weights + j : nullptr, bandwidth, rows, columns, plan.depth.parts, add,
               panel, similarity + i);
        launch(panel_attraction<T>, dim3(ceil_div(d, kTile), row_tiles, splits), kTileThreads,
               sizeof(TilePair), panel, y + j * d, rows, columns, d, plan.sums.length, whole && add,
               whole ? force + i * d : parts);
        if (!whole) add_up(launch, parts, splits, rows * d, add, force + i * d);
      }
  }

  template <typename Launch>
  static void add_up(Launch& launch, const float* parts, int64_t splits, int64_t count, bool add,
                     float* sum) {
    launch(sum_splits, dim3(ceil_div(count, kElementThreads)), kElementThreads, 0, parts, splits,
           count, add, sum);
  }
};

}  // namespace fastrepulse::gpu
