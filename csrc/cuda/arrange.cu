// Elements put elsewhere: strided copies with conversion, and rows gathered in an order.
#include <type_traits>

#include "cuda/elements.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

Index one_each(Index n) {
  const Index all = (n + kThreads - 1) / kThreads;
  return all < kMostBlocks ? all : kMostBlocks;
}

// i = quotient n + remainder. Division of 64 bits takes a device several times as long.
struct Divided {
  Index quotient, remainder;
  __device__ __forceinline__ Divided(Index i, Index n) {
    if (((i | n) >> 32) == 0) {
      quotient = std::uint32_t(i) / std::uint32_t(n), remainder = std::uint32_t(i) % std::uint32_t(n);
    } else {
      quotient = i / n, remainder = i % n;
    }
  }
};

// Numbers go by way of the type that the destination computes in; a type's own elements as they are.
template <class To, class From>
__device__ __forceinline__ To converted(From x) {
  if constexpr (__is_same(To, From)) {
    return x;
  } else if constexpr (__is_same(To, Index)) {
    return Index(x);
  } else if constexpr (requires { Store<From>::from; }) {
    return Store<To>::from(Compute<To>(load(x)));
  } else {
    return Store<To>::from(Compute<To>(x));
  }
}

template <class To, class From>
__global__ void __launch_bounds__(kThreads) copy_kernel(DeviceCopy copy, Index n) {
  const From* from = static_cast<const From*>(copy.from);
  To* to = static_cast<To*>(copy.to);
  const Index threads = Index(gridDim.x) * kThreads;
  for (Index i = Index(blockIdx.x) * kThreads + threadIdx.x; i < n; i += threads) {
    Index rest = i, from_at = 0, to_at = 0;
#pragma unroll
    for (int d = DeviceCopy::kAxes - 1; d > 0; --d) {
      if (d >= copy.ndim) continue;
      const Divided at(rest, copy.shape[d]);
      rest = at.quotient;
      from_at += at.remainder * copy.from_strides[d];
      to_at += at.remainder * copy.to_strides[d];
    }
    to[to_at + rest * copy.to_strides[0]] = converted<To>(from[from_at + rest * copy.from_strides[0]]);
  }
}

// f(T()) for the type of an item.
template <class F>
void with_item(ItemType type, const F& f) {
  switch (type) {
    case ItemType::f32:
      return f(float());
    case ItemType::f64:
      return f(double());
    case ItemType::bf16:
      return f(Bf16());
    case ItemType::f16:
      return f(F16());
    case ItemType::i8:
      return f(std::int8_t());
    case ItemType::u8:
      return f(std::uint8_t());
    case ItemType::i16:
      return f(std::int16_t());
    case ItemType::u16:
      return f(std::uint16_t());
    case ItemType::i32:
      return f(std::int32_t());
    case ItemType::u32:
      return f(std::uint32_t());
    case ItemType::i64:
      return f(std::int64_t());
    case ItemType::u64:
      return f(std::uint64_t());
  }
}

// Without axes of one entry, and with neighbours that lie behind each other in both arrays taken as one.
DeviceCopy merged_axes(const DeviceCopy& copy) {
  DeviceCopy own = copy;
  own.ndim = 0;
  for (int d = 0; d < copy.ndim; ++d) {
    if (copy.shape[d] == 1) continue;
    const int last = own.ndim - 1;
    if (last >= 0 && own.from_strides[last] == copy.shape[d] * copy.from_strides[d] &&
        own.to_strides[last] == copy.shape[d] * copy.to_strides[d]) {
      own.shape[last] *= copy.shape[d];
    } else {
      own.shape[own.ndim++] = copy.shape[d];
    }
    own.from_strides[own.ndim - 1] = copy.from_strides[d];
    own.to_strides[own.ndim - 1] = copy.to_strides[d];
  }
  if (own.ndim == 0) own.from_strides[0] = own.to_strides[0] = 0;
  return own;
}

// A row is moved in words of a size that divides it and the addresses.
template <class Word>
__global__ void __launch_bounds__(kThreads) gather_kernel(const Word* from, Index words, const Index* order,
                                                          const Index* first, Index rows, Word* to) {
  const Index begin = first ? *first : 0, threads = Index(gridDim.x) * kThreads;
  for (Index i = Index(blockIdx.x) * kThreads + threadIdx.x; i < rows * words; i += threads) {
    const Divided at(i, words);
    const Index row = begin + at.quotient;
    to[i] = from[(order ? order[row] : row) * words + at.remainder];
  }
}

struct alignas(16) Sixteen {
  std::uint64_t half[2];
};

}  // namespace
}  // namespace FASTOPT_ISA

void copy_on_device(const DeviceCopy& copy, CudaStream stream) {
  Index n = 1;
  for (int d = 0; d < copy.ndim; ++d) n *= copy.shape[d];
  if (n == 0) return;
  const DeviceCopy own = merged_axes(copy);
  with_item(own.from_type, [&]<class From>(From) {
    const auto to = [&]<class To>(To) {
      launch(copy_kernel<To, From>, one_each(n), kThreads, 0, stream, own, n);
    };
    if (own.to_type == ItemType::i64) {
      if constexpr (std::is_integral_v<From>) to(Index());
    } else {
      with_storage(DType(own.to_type), to);
    }
  });
}

void gather_rows_on_device(const void* from, Index row_bytes, const Index* order, const Index* first,
                           Index rows, void* to, CudaStream stream) {
  if (rows * row_bytes == 0) return;
  const std::uintptr_t bits = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to) |
                              std::uintptr_t(row_bytes);
  const auto gather = [&]<class Word>(Word) {
    const Index words = row_bytes / Index(sizeof(Word));
    launch(gather_kernel<Word>, one_each(rows * words), kThreads, 0, stream, static_cast<const Word*>(from),
           words, order, first, rows, static_cast<Word*>(to));
  };
  if (bits % 16 == 0) return gather(Sixteen());
  if (bits % 8 == 0) return gather(std::uint64_t());
  if (bits % 4 == 0) return gather(std::uint32_t());
  if (bits % 2 == 0) return gather(std::uint16_t());
  gather(std::uint8_t());
}

}  // namespace fastopt
