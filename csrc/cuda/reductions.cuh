// What reductions share. The lanes, blocks and chunks of a plain one and the order of merging are the CPU's,
// and so are the bits. Parts of blocks meet in device memory; the block that is the last to leave one merges
// them all.
#pragma once

#include "core/parallel.hpp"
#include "cuda/packs.cuh"
#include "formulas/monoids.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

inline constexpr int kWarp = 32;
inline constexpr int kMostWarps = 16;  // of a block of these kernels

// A thread is one lane of one block of the chunk, so a chunk takes all threads.
inline constexpr int kLaneBlocks = kThreads / kLanes;
static_assert(kLaneBlocks * kLaneBlock == kChunk);

// f(i) for the elements of the thread's lane in the chunk [begin, end).
template <class F>
__device__ __forceinline__ void for_lane(Index begin, Index end, const F& f) {
  const Index first = begin + threadIdx.x / kLanes * kLaneBlock;
  const Index last = first + kLaneBlock < end ? first + kLaneBlock : end;
  for (Index i = first + threadIdx.x % kLanes; i < last; i += kLanes) f(i);
}

// The lanes of each block merged in the CPU's tree, then the blocks in their order; for thread 0.
template <class M>
__device__ double merge_lanes(double part) {
  __shared__ double blocks[kLaneBlocks];
  for (unsigned distance = kLanes / 2; distance > 0; distance /= 2)
    part = M::merge(part, __shfl_down_sync(~0u, part, distance));
  if (threadIdx.x % kLanes == 0) blocks[threadIdx.x / kLanes] = part;
  __syncthreads();
  double total = M::identity;
  if (threadIdx.x == 0)
    for (int b = 0; b < kLaneBlocks; ++b) total = M::merge(total, blocks[b]);
  return total;
}

// The values of `size` neighbouring threads of a warp, a power of two, merged; for all of them.
template <class T, class F>
__device__ __forceinline__ T merge_warp(T value, int size, const F& merge) {
  for (int distance = size / 2; distance > 0; distance /= 2)
    value = merge(value, __shfl_xor_sync(~0u, value, distance));
  return value;
}

// The values of a block's warps, each the same in all threads of one, merged; for all threads.
template <class T, class F>
__device__ __forceinline__ T merge_warps(T value, const F& merge) {
  __shared__ T warps[kMostWarps];
  __syncthreads();  // what a merge before left is read
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = warps[0];
  for (unsigned w = 1; w < blockDim.x / kWarp; ++w) value = merge(value, warps[w]);
  return value;
}

// The values of all threads of a block of whole warps; for all of them.
template <class T, class F>
__device__ __forceinline__ T merge_block(T value, const F& merge) {
  return merge_warps(merge_warp(value, kWarp, merge), merge);
}

// A caller's scratch: how many blocks have left their part, and the parts.
struct Parts {
  static constexpr Index kHead = 64;  // bytes for counts, which are 0 between kernels
  unsigned* done;
  double* at;

  explicit Parts(void* scratch)
      : done(static_cast<unsigned*>(scratch)),
        at(reinterpret_cast<double*>(static_cast<char*>(scratch) + kHead)) {}
};

// Counts a block of `blocks` that has written what it leaves; true in all threads of the last.
__device__ inline bool is_last(unsigned* done, unsigned blocks) {
  __shared__ bool last;
  __threadfence();  // each thread's writes are there before the count says so
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(done, 1u) == blocks - 1;
    if (last) *done = 0;  // for the next kernel
  }
  __syncthreads();
  __threadfence();
  return last;
}

// Leaves thread 0's part of the block; true in all threads of the block that is the last to do so.
__device__ inline bool is_last_block(double part, double* parts, unsigned* done) {
  if (threadIdx.x == 0) parts[blockIdx.x] = part;
  return is_last(done, gridDim.x);
}

// All parts merged in their order, as the CPU does; for thread 0. The others fetch them.
template <class M>
__device__ double merge_partials(const volatile double* partials, Index n) {
  __shared__ double fetched[kThreads];
  double total = M::identity;
  for (Index at = 0; at < n; at += kThreads) {
    if (at + threadIdx.x < n) fetched[threadIdx.x] = partials[at + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
      for (int i = 0; i < kThreads && at + i < n; ++i) total = M::merge(total, fetched[i]);
    __syncthreads();
  }
  return total;
}

// The parts of one node at the depth where nodes have one or two: halves are taken as merge_parts takes them.
template <class M>
__device__ double merge_node(const volatile double* parts, Index n, Index nodes, Index node) {
  Index begin = 0;
  for (Index bit = nodes / 2; bit > 0; bit /= 2) {
    const Index left = n / 2;
    begin += node & bit ? left : 0;
    n = node & bit ? n - left : left;
  }
  return n == 1 ? parts[begin] : M::merge(parts[begin], parts[begin + 1]);
}

// n > 0 parts merged pairwise in the tree of merge_parts (core/chunks.hpp), a subtree to a thread; for
// thread 0.
template <class M>
__device__ double merge_tree(const volatile double* parts, Index n) {
  constexpr Index kMostSubtrees = 128, kDeepest = 48;
  __shared__ double roots[kMostSubtrees];
  Index nodes = 1;
  while (2 * nodes <= n) nodes *= 2;
  Index subtrees = nodes < kMostSubtrees ? nodes : kMostSubtrees;
  if (threadIdx.x < subtrees) {
    const Index each = nodes / subtrees;
    double waiting[kDeepest];  // for their right sibling, deepest last
    int height = 0;
    for (Index i = 0; i < each; ++i) {
      double part = merge_node<M>(parts, n, nodes, threadIdx.x * each + i);
      for (Index bits = i; bits & 1; bits /= 2) part = M::merge(waiting[--height], part);
      waiting[height++] = part;
    }
    roots[threadIdx.x] = waiting[0];
  }
  for (; subtrees > 1; subtrees /= 2) {
    __syncthreads();
    double part = M::identity;
    if (threadIdx.x < subtrees / 2) part = M::merge(roots[2 * threadIdx.x], roots[2 * threadIdx.x + 1]);
    __syncthreads();
    if (threadIdx.x < subtrees / 2) roots[threadIdx.x] = part;
  }
  return roots[0];
}

// The end of a kernel whose blocks each have a part, thread 0's: leave(total) by one thread.
template <class M, class F>
__device__ void merge_blocks(double part, const Parts& parts, const F& leave) {
  if (!is_last_block(part, parts.at, parts.done)) return;
  const double total = merge_tree<M>(parts.at, gridDim.x);
  if (threadIdx.x == 0) leave(total);
}

// Blocks of a reduction of n elements, a chunk each; of nothing one, which leaves the monoid's identity.
inline Index chunk_blocks(Index n) { return n > 0 ? (n + kChunk - 1) / kChunk : 1; }

// Most blocks of other kernels that leave parts.
inline constexpr Index kMostParts = 1024;

// What a loss divides its gradient by, where that is known on the device alone.
__device__ __forceinline__ double divisor_at(const DeviceSum& sum) {
  return sum.divisor_at ? *sum.divisor_at : 1.0;
}

// The end of a kernel whose blocks each have a part of a loss, thread 0's. A call of its own: inlined into a
// kernel it costs the registers of the loop before it.
template <class S>
__attribute__((noinline)) __device__ void leave_blocks(double part, Parts parts, DeviceSum sum) {
  merge_blocks<Sum<double>>(part, parts, [&](double total) {
    *static_cast<S*>(sum.out) = Store<S>::from(Compute<S>(total / sum.divisor / divisor_at(sum)));
  });
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
