// Rows shared out to teams of threads: a part of a warp for rows of few columns, a warp, or a block. Elements
// stay in a thread's registers between passes over the row. A row too long for that is taken in tiles; the
// pass that writes it goes back from the last tile, which is still in registers or in cache.
#pragma once

#include "cuda/args.cuh"
#include "cuda/reductions.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {

// Threads that take one row each so many: some of a warp, a power of two, or all of a block. Which is known
// when a kernel runs: one made for both takes a compiler half the time of two.
struct Team {
  static constexpr int kMostThreads = 512;
  int size, lane;
  Index first, step;  // rows of the warp's first team, or of the block
  int own;            // this team's among the warp's

  __device__ explicit Team(int size_)
      : size(size_), lane(int(threadIdx.x) % size_), first(blockIdx.x), step(gridDim.x), own(0) {
    if (size > kWarp) return;
    first = (blockIdx.x * blockDim.x + threadIdx.x / kWarp * kWarp) / unsigned(size);
    step = gridDim.x * blockDim.x / unsigned(size);
    own = int(threadIdx.x) % kWarp / size;
  }

  template <class T, class F>
  __device__ __forceinline__ T merge(T value, const F& f) const {
    value = merge_warp(value, size < kWarp ? size : kWarp, f);
    return size > kWarp ? merge_warps(value, f) : value;
  }
};

// `Threads` of these is a Team, or a larger one with the same merge (cluster.cuh).
template <class Threads, class T>
__device__ __forceinline__ T team_sum(const Threads& team, T value) {
  return team.merge(value, [](T a, T b) { return Sum<T>::merge(a, b); });
}
template <class Threads, class T>
__device__ __forceinline__ T team_max(const Threads& team, T value) {
  return team.merge(value, [](T a, T b) { return max(a, b); });
}

// f(row, live) for the team's rows. All teams of a warp come along as long as one has a row; those without
// get the last one, and live is false.
template <class F>
__device__ __forceinline__ void for_rows(const Team& team, Index rows, const F& f) {
  for (Index first = team.first; first < rows; first += team.step) {
    const Index row = first + team.own;
    f(row < rows ? row : rows - 1, row < rows);
  }
}

// Whether two rows begin as far behind 16 bytes; of one that is not there, yes.
template <class S>
__device__ __forceinline__ bool alike(const S* a, const S* b) {
  return !b || (reinterpret_cast<std::uintptr_t>(a) - reinterpret_cast<std::uintptr_t>(b)) % kWidest == 0;
}

// How a team shares out a row: packs of N neighbours are dealt to its threads in turn, K elements for each to
// a tile. Packs begin where 16 bytes begin, so the first may begin before the row, and the last end behind
// it.
template <class S, int K>
struct Deal {
  using T = Compute<S>;
  static constexpr int kSixteen = kWidest / int(sizeof(S)), N = K < kSixteen ? 1 : kSixteen;
  static_assert(K % N == 0);
  int columns, lane, size, tiles, before;
  bool whole;  // packs can be moved as one

  // Of no columns nothing is read or written. alike: the row's other arrays begin as far behind 16 bytes.
  __device__ Deal(const Team& team, Index columns_, const S* row, bool alike)
      : columns(int(columns_)),
        lane(team.lane),
        size(team.size),
        tiles(1),
        before(N == 1 ? 0 : int(reinterpret_cast<std::uintptr_t>(row) % kWidest / sizeof(S))),
        whole(N > 1 && alike) {
    if constexpr (N > 1)  // a loop: a division is a call, and tiles are few
      for (int end = size * K; end < columns + before; end += size * K) ++tiles;
  }

  __device__ __forceinline__ int column(int tile, int k) const {
    return ((tile * (K / N) + k / N) * size + lane) * N + k % N - before;
  }
  __device__ __forceinline__ bool inside(int column) const { return column >= 0 && column < columns; }
  __device__ __forceinline__ bool as_one(int column) const {
    return whole && column >= 0 && column + N <= columns;
  }

  // `missing` stands for what lies outside the row.
  __device__ __forceinline__ void read(const S* row, int tile, T missing, T (&at)[K]) const {
#pragma unroll
    for (int k = 0; k < K; k += N) {
      const int c = column(tile, k);
      if (as_one(c)) {
        const Pack<S, N> pack = load_pack<N>(row + c);
#pragma unroll
        for (int j = 0; j < N; ++j) at[k + j] = load(pack.at[j]);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) at[k + j] = inside(c + j) ? load(row[c + j]) : missing;
      }
    }
  }
  __device__ __forceinline__ void write(S* row, int tile, const T (&at)[K]) const {
#pragma unroll
    for (int k = 0; k < K; k += N) {
      const int c = column(tile, k);
      if (as_one(c)) {
        Pack<S, N> pack;
#pragma unroll
        for (int j = 0; j < N; ++j) pack.at[j] = Store<S>::from(at[k + j]);
        store_pack(row + c, pack);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j)
          if (inside(c + j)) row[c + j] = Store<S>::from(at[k + j]);
      }
    }
  }
};

// A row's largest element, and the sum of exp(x - top). The last tile is left in registers: as it is, or as
// its exponentials where the row has no other and `Keep` asks for them. see(tile, at, shift) is shown every
// tile before that, and moved(by) what the shift has risen by since the tile before.
template <bool Keep, class Threads, class S, int K, class See, class Moved>
__device__ __forceinline__ OnlineSoftmax<Compute<S>> normalizer(const Threads& team, const Deal<S, K>& deal,
                                                                const S* row, Compute<S> (&at)[K],
                                                                const See& see, const Moved& moved) {
  using T = Compute<S>;
  OnlineSoftmax<T> softmax;
  const bool one = deal.tiles == 1;
  for (int tile = 0; tile < deal.tiles; ++tile) {
    deal.read(row, tile, Max<T>::identity, at);
    T top = Max<T>::identity;
#pragma unroll
    for (int k = 0; k < K; ++k) top = max(top, at[k]);
    moved(softmax.raise(one ? team_max(team, top) : top));
    see(tile, at, softmax.shift());
    T sum = T(0);
    const T shift = softmax.shift();
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const T e = exp_term(at[k] - shift);
      sum = Sum<T>::push(sum, e);
      if (Keep && one) at[k] = e;
    }
    softmax.sum = Sum<T>::merge(softmax.sum, sum);
  }
  if (!one) moved(softmax.raise(team_max(team, softmax.top)));
  softmax.sum = team_sum(team, softmax.sum);
  return softmax;
}

// Told to leave room for one block, nvcc gives a thread the 128 registers that there are; left to choose, it
// saves some by spilling.
template <class Op, int K>
__global__ void __launch_bounds__(Team::kMostThreads, 1) rows_kernel(Op op, Index rows, int size) {
  op.template run<K>(Team(size), rows);
}

// op.run<K>(team, rows) with a warp a row, or part of one where columns are fewer.
template <int K, class Op>
void launch_warps(const Op& op, Index rows, Index columns, CudaStream stream) {
  int size = 1;
  while (size < columns && size < kWarp) size *= 2;
  const Index blocks = (rows * size + kThreads - 1) / kThreads;
  launch(rows_kernel<Op, K>,
         blocks < 1            ? 1
         : blocks < kMostParts ? blocks
                               : kMostParts,
         kThreads, 0, stream, op, rows, size);
}

// op.run<K>(team, rows) with teams for rows of so many columns: in registers up to 1024 columns for a warp
// and 16384 for a block, half as many of doubles. The choice follows from the number of columns alone.
template <class S, int kMany = sizeof(S) == 8 ? 8 : 32, class Op>
void launch_rows(const Op& op, Index rows, Index columns, CudaStream stream) {
  constexpr int kFew = 8;
  if (columns <= kWarp) return launch_warps<1>(op, rows, columns, stream);
  if (columns <= kWarp * kFew) return launch_warps<kFew>(op, rows, columns, stream);
  if (columns <= kWarp * kMany) return launch_warps<kMany>(op, rows, columns, stream);
  int threads = 128;
  while (threads < Team::kMostThreads && threads * kMany < columns) threads *= 2;
  launch(rows_kernel<Op, kMany>,
         rows < 1            ? 1
         : rows < kMostParts ? rows
                             : kMostParts,
         threads, 0, stream, op, rows, threads);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
