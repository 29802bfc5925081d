// Rows shared out to clusters of blocks, which run together and read each other's shared memory: a row of
// more columns than the registers of one block hold is then read once. For compute capability 9.0 and newer.
#pragma once

#include "cuda/rows.cuh"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#endif

namespace fastopt {
inline namespace FASTOPT_ISA {

// Waits until all threads of the cluster have come here, and sees what they have written. Code for older
// devices compiles too, and is never launched.
__device__ __forceinline__ void wait_for_cluster() {
#ifndef __CUDACC__
  host_cuda::wait_for_cluster();
#elif __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#endif
}

// Where another block of the cluster has what lies here in the shared memory of this one.
template <class T>
__device__ __forceinline__ const T* shared_of([[maybe_unused]] int block, T* own) {
#ifndef __CUDACC__
  return static_cast<const T*>(host_cuda::shared_of(unsigned(block), own));
#elif __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(own, unsigned(block));
#else
  return own;
#endif
}

// All threads of a cluster take one row.
struct ClusterTeam : Team {
  static constexpr int kMostBlocks = 8;  // that every device with clusters can run together
  static constexpr int kSlot = 16, kSharedBytes = 2 * kSlot;
  int blocks;
  mutable int turn = 0;

  __device__ explicit ClusterTeam(int blocks_) : Team(int(blockDim.x)), blocks(blocks_) {
    lane += int(blockIdx.x) % blocks * size;
    size *= blocks;
    first /= blocks;
    step /= blocks;
  }

  // Blocks leave their values in two slots by turns: who writes one again has seen all others come for the
  // next.
  template <class T, class F>
  __device__ __forceinline__ T merge(T value, const F& f) const {
    static_assert(sizeof(T) <= kSlot);
    value = Team::merge(value, f);
    T* const slot = reinterpret_cast<T*>(shared_memory<unsigned char>() + turn * kSlot);
    turn = 1 - turn;
    if (threadIdx.x == 0) *slot = value;
    wait_for_cluster();
    value = *shared_of(0, slot);
    for (int b = 1; b < blocks; ++b) value = f(value, *shared_of(b, slot));
    return value;
  }
};

template <class Op, int K>
__global__ void __launch_bounds__(Team::kMostThreads, 1) cluster_rows_kernel(Op op, Index rows, int blocks) {
  op.template run<K>(ClusterTeam(blocks), rows);
  wait_for_cluster();  // no block goes while another may read its shared memory
}

// Whether the device runs clusters, and has this kernel from code that knows of them.
template <class Kernel>
bool has_clusters(Kernel kernel) {
  int device, able;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&able, cudaDevAttrClusterLaunch, device));
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel));
  return able && attributes.ptxVersion >= 90;
}

// `launch_rows`, with clusters for rows that one block's registers do not hold; the longest go through those
// of eight blocks in several tiles.
template <class S, int kMany = sizeof(S) == 8 ? 8 : 32, class Op>
void launch_rows_on_clusters(const Op& op, Index rows, Index columns, CudaStream stream) {
  constexpr Index kEach = Team::kMostThreads * kMany;
  const auto kernel = cluster_rows_kernel<Op, kMany>;
  if (columns <= kEach || !has_clusters(kernel)) return launch_rows<S, kMany>(op, rows, columns, stream);
  int blocks = 2;
  while (blocks < ClusterTeam::kMostBlocks && blocks * kEach < columns) blocks *= 2;
  const Index most = kMostParts / blocks, clusters = rows < 1 ? 1 : rows < most ? rows : most;
  launch_clusters(kernel, clusters * blocks, blocks, Team::kMostThreads, ClusterTeam::kSharedBytes, stream,
                  op, rows, blocks);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
