// Memory that is kept from one use to the next.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <new>
#include <utility>

#include "core/array.hpp"

namespace fastopt {

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  Index bytes() const { return bytes_; }
  void swap(Buffer& other) noexcept {
    std::swap(large_, other.large_), std::swap(data_, other.data_), std::swap(bytes_, other.bytes_);
  }

  // At least so many bytes, 64-byte aligned; what it held is lost when it grows.
  char* reserve(Index bytes) {
    if (bytes > bytes_) {
      release();
      data_ = nullptr;
      bytes_ = 0;
      large_ = bytes >= kLargePage / 2;
      if (large_) bytes = (bytes + kLargePage - 1) / kLargePage * kLargePage;
      data_ = static_cast<char*>(::operator new(std::size_t(bytes), alignment()));
#if defined(__linux__)
      if (large_) madvise(data_, std::size_t(bytes), MADV_HUGEPAGE);
#endif
      bytes_ = bytes;
    }
    return data_;
  }

 private:
  static constexpr Index kLine = 64, kLargePage = Index(1) << 21;
  std::align_val_t alignment() const { return std::align_val_t(large_ ? kLargePage : kLine); }
  void release() { ::operator delete(data_, alignment()); }

  bool large_ = false;  // on large pages, where there are such: the first touch of each costs microseconds
  char* data_ = nullptr;
  Index bytes_ = 0;
};

}  // namespace fastopt
