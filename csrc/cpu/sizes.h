// Rounding divisions, and the least work for a thread.
#pragma once

#include <cstdint>

namespace fastrepulse {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// The least number of items for a thread when an item takes `numbers` operations.
constexpr int64_t grain_of(int64_t numbers) { return divide_up(1 << 15, numbers); }

}  // namespace fastrepulse
