// Aligned memory for one call of an operator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fastrepulse {

// Large pieces are kept for the next call, up to 32 MiB in total. Page faults on fresh memory would
// take up to a quarter of the computing time.
void* take_memory(size_t bytes);
void give_memory(void* data, size_t bytes);

// An uninitialised array.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0)
      : size_(size),
        data_(static_cast<T*>(take_memory(size * sizeof(T))), Give{size * sizeof(T)}) {}
  int64_t size() const { return size_; }
  T* data() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  struct Give {
    size_t bytes;
    void operator()(T* data) const { give_memory(data, bytes); }
  };
  int64_t size_;
  std::unique_ptr<T[], Give> data_;
};

}  // namespace fastrepulse
