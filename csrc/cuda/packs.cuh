// Packs of neighbouring elements, so that a thread moves 16 bytes at a time where pointers allow it.
#pragma once

#include "cuda/launch.cuh"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

inline constexpr int kThreads = 256;  // of a block
inline constexpr int kWidest = 16;    // bytes of one access

template <class S, int N>
struct alignas(N * sizeof(S) < kWidest ? N * sizeof(S) : kWidest) Pack {
  S at[N];
};

template <int N, class S>
__device__ __forceinline__ Pack<S, N> load_pack(const S* x) {
  return *reinterpret_cast<const Pack<S, N>*>(x);
}
template <int N, class S>
__device__ __forceinline__ void store_pack(S* x, const Pack<S, N>& pack) {
  *reinterpret_cast<Pack<S, N>*>(x) = pack;
}

// Whether packs of N elements may be read from there; of nothing they may.
template <int N, class S>
FO_HD bool fits_pack(const S* x) {
  return reinterpret_cast<std::uintptr_t>(x) % alignof(Pack<S, N>) == 0;
}

// The elements [begin, end) dealt to threads in turn: body.run<N>(i) for whole packs where they fit,
// body.run<1>(i) for the rest.
template <int N, class Int, class Body>
__device__ __forceinline__ void for_each_pack(bool fits, Int begin, Int end, Int thread, Int threads,
                                              const Body& body) {
  const Int whole = fits ? begin + (end - begin) / N * N : begin;
  for (Int i = begin + thread * N; i < whole; i += threads * N) body.template run<N>(i);
  for (Int i = whole + thread; i < end; i += threads) body.template run<1>(i);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
