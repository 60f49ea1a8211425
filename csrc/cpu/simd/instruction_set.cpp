#include <cstdlib>
#include <cstring>

#include "cpu/simd/tile_ops.h"

namespace fastrepulse {

extern const InstructionSet baseline;
#ifdef FASTREPULSE_X86
extern const InstructionSet avx2;
extern const InstructionSet avx512;
#endif

namespace {

const InstructionSet& choose() {
#ifdef FASTREPULSE_X86
  // FASTREPULSE_CPU_CAPABILITY selects a lower instruction set, so that tests can run each of them
  const char* wanted = std::getenv("FASTREPULSE_CPU_CAPABILITY");
  const auto allowed = [&](const InstructionSet& set) {
    return wanted == nullptr || std::strcmp(wanted, set.name) == 0;
  };
  if (allowed(avx512) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return avx512;
  }
  if (allowed(avx2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2;
  }
#endif
  return baseline;
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet& best = choose();
  return best;
}

}  // namespace fastrepulse
