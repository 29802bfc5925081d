// What the kernels know of an array: plain data, no owner, no Python.
#pragma once

#include <cstdint>

namespace fastopt {

using Index = std::int64_t;

// The order is the column of every kernel table.
enum class DType : std::uint8_t { f32, f64, bf16, f16 };
inline constexpr int kDTypes = 4;        // storage types of the elementwise and step drivers
inline constexpr int kComputeTypes = 2;  // float, double: the types formulas compute in

constexpr Index item_bytes(DType dtype) {
  constexpr Index kBytes[kDTypes] = {4, 8, 2, 2};
  return kBytes[int(dtype)];
}

// State and averages of low-precision parameters are float32.
constexpr DType state_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// The place of one element; null stays null.
inline const void* element_at(const void* base, Index element, DType dtype) {
  return base ? static_cast<const char*>(base) + element * item_bytes(dtype) : nullptr;
}
inline void* element_at(void* base, Index element, DType dtype) {
  return base ? static_cast<char*>(base) + element * item_bytes(dtype) : nullptr;
}

struct ArrayView {
  void* data;
  const Index* shape;
  const Index* strides;  // in bytes
  Index size;            // number of elements
  int ndim;
  DType dtype;
  bool c_contiguous, aligned, writeable;
};

}  // namespace fastopt
