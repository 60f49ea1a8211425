#include "cpu/buffer.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <mutex>
#include <new>
#include <vector>

namespace fastrepulse {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kMostKept = size_t{32} << 20;

// Asks for huge pages in large memory, which causes fewer page faults.
void prefer_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

struct Piece {
  void* data;
  size_t bytes;
};

// Unused pieces of memory, in the order in which they were returned.
class Kept {
 public:
  // Returns null if no piece has that size.
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = pieces_.size(); i-- > 0;) {
      if (pieces_[i].bytes == bytes) {
        void* data = pieces_[i].data;
        pieces_.erase(pieces_.begin() + i);
        total_ -= bytes;
        return data;
      }
    }
    return nullptr;
  }

  void give(void* data, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    pieces_.push_back({data, bytes});
    total_ += bytes;
    while (total_ > kMostKept) {
      ::operator delete[](pieces_.front().data, kAlignment);
      total_ -= pieces_.front().bytes;
      pieces_.erase(pieces_.begin());
    }
  }

 private:
  std::mutex mutex_;
  std::vector<Piece> pieces_;
  size_t total_ = 0;
};

// Never destroyed, since a thread may still compute when the process ends.
Kept& kept() {
  static Kept& pieces = *new Kept;
  return pieces;
}

// Large pieces come in few sizes, so that one fits the next call of nearly the same shape
size_t rounded(size_t bytes) { return (bytes + kLarge - 1) / kLarge * kLarge; }

}  // namespace

void* take_memory(size_t bytes) {
  if (bytes < kLarge) {
    return ::operator new[](bytes, kAlignment);
  }
  const size_t size = rounded(bytes);
  if (void* data = kept().take(size)) {
    return data;
  }
  void* data = ::operator new[](size, kAlignment);
  prefer_huge_pages(data, size);
  return data;
}

void give_memory(void* data, size_t bytes) {
  if (bytes < kLarge) {
    ::operator delete[](data, kAlignment);
  } else {
    kept().give(data, rounded(bytes));
  }
}

}  // namespace fastrepulse
