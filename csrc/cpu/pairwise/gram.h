// All dot products of few particles, kept, and shared out over dimensions.
#pragma once

#include "cpu/pairwise/panel.h"

namespace fastrepulse {

// Dimensions that are read at once.
constexpr int kGramDepth = 128;

// Whether all dot products are kept: where there are next to none, or too few tiles for the threads
// and dimensions enough to share out instead.
inline bool are_few(const Embeddings& x) {
  return x.count <= 128 || (x.count <= 512 && x.dim >= 512);
}

// Reads a chunk of the dimensions of all embeddings, less `offset` where given, to
// [rows, kGramDepth], zero elsewhere; returns how many there are.
template <class T>
int64_t read_chunk(const Embeddings& x, int64_t chunk, const T* offset, int rows, T* to);

template <class T>
struct Gram {
  explicit Gram(const Embeddings& x);

  int size;         // the number of particles, rounded up; those missing are infinitely far away
  Buffer<T> dots;   // [size, size]
  Buffer<T> norms;  // [size]
  Buffer<T> means;  // [dim, rounded up to whole chunks], of which the particles are taken
};

}  // namespace fastrepulse
