// Vectors as wide as the instruction set that this is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrepulse {
// In each file for itself: a linker would be free to keep one copy of a shared inline function, be
// it built for a processor which is not there.
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
  // Not plus: a sum with zero is an instruction, since it makes -0 a zero
  return value - Values<T>{};
}

}  // namespace
}  // namespace fastrepulse
