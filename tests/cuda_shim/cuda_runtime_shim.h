// Runs CUDA C++ kernels on the CPU. Each thread is a fibre; fibres switch at barriers, in a shuffled
// order.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// What `extern __shared__` in the kernels names; defined by the driver
namespace fastrepulse::gpu {
extern unsigned char shared_memory[];
}
constexpr size_t kSharedCapacity = 100 * 1024;

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct __nv_bfloat16 {
  uint16_t bits;
  operator float() const { return bits_to_float(uint32_t{bits} << 16); }
};

struct __half {
  uint16_t bits;
  operator float() const {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size = std::ldexp(mantissa + (exponent ? 1024.0f : 0.0f), (exponent ? exponent : 1) - 25);
    if (exponent == 31) size = mantissa ? NAN : INFINITY;
    return bits >> 15 ? -size : size;
  }
};

inline float __uint_as_float(uint32_t bits) { return bits_to_float(bits); }
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address += value;
  return old;
}

namespace shim {

enum class At { kRunning, kWarp, kBlock, kGrid, kDone };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  At at;
  unsigned thread, block;  // index of the block among those that run at once
};

struct Machine {
  std::mt19937 random;
  std::vector<Fibre> fibres;
  std::vector<float> shuffle;  // one slot per fibre, for warp shuffles
  ucontext_t scheduler;
  Fibre* current;
  std::function<void()> kernel;
};
inline Machine machine;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda shim: %s\n", what);
  std::abort();
}

inline void wait(At barrier) {
  machine.current->at = barrier;
  swapcontext(&machine.current->context, &machine.scheduler);
}

inline void start_fibre() {
  machine.kernel();
  wait(At::kDone);
}

// Releases groups in which every thread waits at the barrier. A thread that left cannot arrive.
inline bool release(At barrier, size_t group) {
  bool released = false;
  auto& fibres = machine.fibres;
  for (size_t first = 0; first < fibres.size(); first += group) {
    size_t waiting = 0, done = 0, members = std::min(group, fibres.size() - first);
    for (size_t f = first; f < first + members; ++f) {
      waiting += fibres[f].at == barrier;
      done += fibres[f].at == At::kDone;
    }
    if (waiting && done) fail("a thread left the kernel before a barrier of its group");
    if (waiting < members) continue;
    for (size_t f = first; f < first + members; ++f) fibres[f].at = At::kRunning;
    released = true;
  }
  return released;
}

// Runs some blocks to their end, all of them alive at once.
inline void run_blocks(const std::vector<dim3>& blocks, unsigned threads, size_t shared_size) {
  // Shared memory starts as NaNs, and a write past its end is detected
  std::vector<std::vector<unsigned char>> shared(blocks.size());
  for (auto& memory : shared) {
    memory.assign(kSharedCapacity, 0xa5);
    std::memset(memory.data(), 0xff, shared_size);
  }
  auto& fibres = machine.fibres;
  fibres.resize(blocks.size() * threads);
  machine.shuffle.resize(fibres.size());
  for (size_t f = 0; f < fibres.size(); ++f) {
    constexpr size_t kStack = 64 * 1024;
    Fibre& fibre = fibres[f];
    if (!fibre.stack) fibre.stack.reset(new char[kStack]);
    fibre.at = At::kRunning;
    fibre.thread = f % threads;
    fibre.block = f / threads;
    getcontext(&fibre.context);
    fibre.context.uc_stack = {fibre.stack.get(), 0, kStack};
    makecontext(&fibre.context, start_fibre, 0);
  }
  std::vector<size_t> block_order(blocks.size()), thread_order(threads);
  std::iota(block_order.begin(), block_order.end(), 0);
  std::iota(thread_order.begin(), thread_order.end(), 0);
  do {
    std::shuffle(block_order.begin(), block_order.end(), machine.random);
    for (size_t b : block_order) {
      std::memcpy(fastrepulse::gpu::shared_memory, shared[b].data(), kSharedCapacity);
      blockIdx = blocks[b];
      do {
        std::shuffle(thread_order.begin(), thread_order.end(), machine.random);
        for (size_t t : thread_order) {
          machine.current = &fibres[b * threads + t];
          if (machine.current->at != At::kRunning) continue;
          threadIdx = dim3(t);
          swapcontext(&machine.scheduler, &machine.current->context);
        }
      } while (release(At::kWarp, 32) || release(At::kBlock, threads));
      std::memcpy(shared[b].data(), fastrepulse::gpu::shared_memory, kSharedCapacity);
    }
  } while (release(At::kGrid, fibres.size()));
  for (const Fibre& fibre : fibres)
    if (fibre.at != At::kDone) fail("threads wait at different barriers");
  for (const auto& memory : shared)
    for (size_t byte = shared_size; byte < kSharedCapacity; ++byte)
      if (memory[byte] != 0xa5) fail("a write past the end of shared memory");
}

// Replaces <<<>>> and cooperative launches.
struct Launch {
  template <typename... Parameters, typename... Args>
  void operator()(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_size,
                  Args... args) {
    for (const dim3& block : prepare(grid, threads, [=] { kernel(args...); }))
      run_blocks({block}, threads, shared_size);
  }

  template <typename... Parameters, typename... Args>
  void cooperative(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_size,
                   Args... args) {
    run_blocks(prepare(grid, threads, [=] { kernel(args...); }), threads, shared_size);
  }

 private:
  static std::vector<dim3> prepare(dim3 grid, unsigned threads, std::function<void()> kernel) {
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) fail("a bad grid");
    machine.kernel = std::move(kernel);
    gridDim = grid;
    blockDim = dim3(threads);
    std::vector<dim3> blocks;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y, z);
    std::shuffle(blocks.begin(), blocks.end(), machine.random);
    return blocks;
  }
};

}  // namespace shim

inline void __syncthreads() { shim::wait(shim::At::kBlock); }

inline float __shfl_xor_sync(unsigned, float value, int offset) {
  auto& machine = shim::machine;
  const size_t self = machine.current - machine.fibres.data();
  machine.shuffle[self] = value;
  shim::wait(shim::At::kWarp);
  const float other = machine.shuffle[self ^ offset];
  shim::wait(shim::At::kWarp);
  return other;
}

namespace cooperative_groups {
struct grid_group {
  void sync() const { shim::wait(shim::At::kGrid); }
};
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups
