// Memory that is kept from one use to the next.
#pragma once

#include <new>

#include "core/array.hpp"

namespace fastopt {

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  // At least so many bytes, 64-byte aligned; what it held is lost when it grows.
  char* reserve(Index bytes) {
    if (bytes > bytes_) {
      release();
      data_ = nullptr;
      bytes_ = 0;
      data_ = static_cast<char*>(::operator new(std::size_t(bytes), kAlign));
      bytes_ = bytes;
    }
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  void release() { ::operator delete(data_, kAlign); }

  char* data_ = nullptr;
  Index bytes_ = 0;
};

}  // namespace fastopt
