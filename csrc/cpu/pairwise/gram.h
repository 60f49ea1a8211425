// All dot products of few particles. Threads divide the dimensions among themselves.
#pragma once

#include "cpu/pairwise/panel.h"

namespace fastrepulse {

// Dimensions of a chunk.
constexpr int kGramDepth = 128;

// Whether all dot products are stored. They are for very few particles, and for many dimensions
// with too few tiles for the threads.
inline bool are_few(const Embeddings& x) {
  return x.count <= 128 || (x.count <= 512 && x.dim >= 512);
}

// Reads a chunk of the dimensions of all embeddings to [rows, kGramDepth], zero elsewhere.
// Subtracts `offset` unless it is null. Returns the number of dimensions in the chunk.
template <class T>
int64_t read_chunk(const Embeddings& x, int64_t chunk, const T* offset, int rows, T* to);

template <class T>
struct Gram {
  explicit Gram(const Embeddings& x);

  int size;         // number of particles, padded with particles at infinite distance
  Buffer<T> dots;   // [size, size]
  Buffer<T> norms;  // [size]
  Buffer<T> means;  // [dim, rounded up to whole chunks]
};

}  // namespace fastrepulse
