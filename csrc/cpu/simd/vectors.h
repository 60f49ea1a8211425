// Vectors of the instruction set that the including file is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

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
struct Vector;
template <>
struct Vector<float> {
  typedef float Values __attribute__((vector_size(kBytes)));
  typedef int32_t Bits __attribute__((vector_size(kBytes)));
  static constexpr float kRound = 0x1.8p23f;
  static constexpr int kMantissa = 23;
  static constexpr float kSmallest = -126;
};
template <>
struct Vector<double> {
  typedef double Values __attribute__((vector_size(kBytes)));
  typedef int64_t Bits __attribute__((vector_size(kBytes)));
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kMantissa = 52;
  static constexpr double kSmallest = -1022;
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
