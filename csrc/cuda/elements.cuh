// What the drivers over single elements share: how many a thread takes, and of which type.
#pragma once

#include "cuda/packs.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {

inline constexpr Index kMostBlocks = 4096;  // of a launch; a thread then takes several packs

// Elements of a pack: 16 bytes of them, and whole blocks of Philox's words.
template <class S>
inline constexpr int kPack = sizeof(S) == 2 ? 8 : 4;

// Blocks of one multiprocessor that share its registers: as many as leave no kernel short of them.
template <class S>
inline constexpr int kBlocks = sizeof(S) == 8 ? 2 : 4;

// What is left of a division. Of 64 bits it takes a device several times as long.
__device__ __forceinline__ Index remainder(Index i, Index n) {
  return ((i | n) >> 32) == 0 ? Index(std::uint32_t(i) % std::uint32_t(n)) : i % n;
}

// An activation that is none, for a bias alone.
template <class T>
struct Identity {
  FO_HD explicit Identity(const double*) {}
  FO_HD T value(T x) const { return x; }
};

template <class S>
Index blocks(Index n) {
  const Index packs = (n + kPack<S> - 1) / kPack<S>, all = (packs + kThreads - 1) / kThreads;
  return all < kMostBlocks ? all : kMostBlocks;
}

// All of n elements by the launch's threads.
template <int N, class Body>
__device__ __forceinline__ void run_all(bool fits, Index n, const Body& body) {
  for_each_pack<N>(fits, Index(0), n, Index(blockIdx.x) * blockDim.x + threadIdx.x,
                   Index(gridDim.x) * blockDim.x, body);
}

// f(S()) for the storage type S.
template <class F>
void with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32:
      return f(float());
    case DType::f64:
      return f(double());
    case DType::bf16:
      return f(Bf16());
    case DType::f16:
      return f(F16());
  }
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
