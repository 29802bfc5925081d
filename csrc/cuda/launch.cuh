// The one way a kernel is launched, and the names its code uses. Those are CUDA's own; where the file is
// compiled as C++, tests/host_cuda/host_cuda.hpp gives the same names to a block of fibers.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/kernels.hpp"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "host_cuda.hpp"
#endif

namespace fastopt {
inline namespace FASTOPT_ISA {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// The block's dynamic shared memory.
template <class T>
__device__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#else
  return static_cast<T*>(host_cuda::shared_memory());
#endif
}

// The kernel on `grid` blocks of `block` threads, each block with so many bytes of dynamic shared memory.
template <class... P, class... A>
void launch(void (*kernel)(P...), Index grid, int block, int shared_bytes, CudaStream stream,
            const A&... args) {
#ifdef __CUDACC__
  kernel<<<unsigned(grid), unsigned(block), std::size_t(shared_bytes), stream>>>(args...);
#else
  host_cuda::enqueue(stream, [=] {
    host_cuda::launch(unsigned(grid), unsigned(block), std::size_t(shared_bytes), [&] { kernel(args...); });
  });
#endif
  check(cudaGetLastError());
}

// The same with so many blocks that follow one another as a cluster each; it divides the grid.
template <class... P, class... A>
void launch_clusters(void (*kernel)(P...), Index grid, int cluster, int block, int shared_bytes,
                     CudaStream stream, const A&... args) {
#ifdef __CUDACC__
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(grid));
  config.blockDim = dim3(unsigned(block));
  config.dynamicSmemBytes = std::size_t(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, P(args)...));
#else
  host_cuda::enqueue(stream, [=] {
    host_cuda::launch(
        unsigned(grid), unsigned(block), std::size_t(shared_bytes), [&] { kernel(args...); },
        unsigned(cluster));
  });
  check(cudaGetLastError());
#endif
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
