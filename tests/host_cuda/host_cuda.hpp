// CUDA's names for kernels that are compiled as C++. A launch that no graph records (host_graph.hpp) runs at
// once, on the calling thread: its blocks one after another, the threads of a block as fibers that change
// places only where one waits. Of a cluster each block goes as far as where it waits for the others, then the
// next; what is __shared__ by name is lost there, only dynamic shared memory stays and can be read by others.
// Every other launch takes blocks and threads in reverse, so that what leans on their order does not pass for
// long. Device memory is the heap's, so that the address sanitizer watches it.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "host_graph.hpp"
#include "host_runtime.hpp"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct HostIndex {
  unsigned x;
};
inline thread_local HostIndex threadIdx, blockIdx, blockDim, gridDim;

namespace host_cuda {

void launch(unsigned grid, unsigned block, std::size_t shared_bytes, const std::function<void()>& kernel,
            unsigned cluster = 1);

// The running block's dynamic shared memory: as large as the launch said, and garbage when a block starts.
void* shared_memory();
// What lies at `own` of it in another block of the cluster.
void* shared_of(unsigned block, void* own);

// Waits until each thread of the block, of the calling thread's warp, or of its cluster has called it as
// often.
void wait_for_block();
void wait_for_warp();
void wait_for_cluster();

// Where the threads of the calling one's warp leave the values that they exchange: 32 of 8 bytes.
void* warp_slots();
// How many threads the calling one's warp has.
unsigned warp_threads();

// The value that the lane has given; one's own where the warp has no such lane.
template <class T>
T shuffle(unsigned mask, T value, unsigned lane) {
  static_assert(sizeof(T) <= 8);
  if (mask != ~0u) std::abort();  // part of a warp is not modelled
  char* slots = static_cast<char*>(warp_slots());
  std::memcpy(slots + 8 * (threadIdx.x % 32), &value, sizeof(T));
  wait_for_warp();
  if (lane < warp_threads()) std::memcpy(&value, slots + 8 * lane, sizeof(T));
  wait_for_warp();
  return value;
}

}  // namespace host_cuda

inline void __syncthreads() { host_cuda::wait_for_block(); }
inline void __threadfence() {}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return host_cuda::shuffle(mask, value, threadIdx.x % 32 ^ unsigned(lane_mask));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  return host_cuda::shuffle(mask, value, threadIdx.x % 32 + delta);
}

// Fibers run one at a time, so these are whole by themselves.
template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
