// Vectors of the instruction set that the including file is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace fastrepulse {
// The anonymous namespace gives each file its own copy. Otherwise the linker could keep one copy of
// an inline function, compiled for an instruction set that the processor lacks.
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T>
struct Vector {
  using Integer = std::conditional_t<sizeof(T) == sizeof(int32_t), int32_t, int64_t>;
  typedef T Values __attribute__((vector_size(kBytes)));
  typedef Integer Bits __attribute__((vector_size(kBytes)));
  static constexpr int kMantissa = std::numeric_limits<T>::digits - 1;
  // Adding and subtracting 1.5 * 2^kMantissa rounds to a whole number
  static constexpr T kRound = T(3) * (int64_t{1} << (kMantissa - 1));
  static constexpr T kSmallest = std::numeric_limits<T>::min_exponent - 1;
};

template <class T>
using Values = typename Vector<T>::Values;
using Floats = Values<float>;
template <class T>
using Bits = typename Vector<T>::Bits;
template <class T>
constexpr int kLanes = kBytes / sizeof(T);

template <class T>
inline Values<T> load(const T* p) {
  Values<T> v;
  __builtin_memcpy(&v, p, kBytes);
  return v;
}

template <class T>
inline void store(T* p, Values<T> v) {
  __builtin_memcpy(p, &v, kBytes);
}

template <class T>
inline Values<T> splat(T value) {
  // Minus and not plus: adding zero costs an instruction, since it turns -0 into 0
  return value - Values<T>{};
}

}  // namespace
}  // namespace fastrepulse
