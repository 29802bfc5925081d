// Values of the host that travel with launches into device memory: unlike a copy from pageable memory they
// wait for nothing.
#pragma once

#include <algorithm>

#include "cuda/launch.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
__global__ void store_kernel(T* to, const __grid_constant__ Inline<T> values, Index n) {
  for (Index i = threadIdx.x; i < n; i += blockDim.x) to[i] = values.at[i];
}

template <class T>
void store(T* to, const T* from, Index n, CudaStream stream) {
  for (Index at = 0; at < n; at += Inline<T>::kSize) {
    const Index part = std::min(n - at, Inline<T>::kSize);
    Inline<T> values;
    std::copy_n(from + at, part, values.at);
    launch(store_kernel<T>, 1, 32, 0, stream, to + at, values, part);
  }
}

// Room for n values, kept where it has been made before.
template <class T>
T* room(DeviceArray<T>& memory, Index n) {
  if (!memory) memory.reset(static_cast<T*>(device_memory(n * Index(sizeof(T))).release()));
  return memory.get();
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
