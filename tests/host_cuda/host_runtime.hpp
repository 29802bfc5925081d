// CUDA's devices and pointers for code that runs on the host. There are two devices, so that mixing them can
// be tested; memory is the first one's unless `give_to_device` says otherwise.
#pragma once

#include <cstddef>

#include "host_graph.hpp"

#define CUDART_VERSION 13000

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrClusterLaunch = 120
};
enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost,
  cudaMemoryTypeDevice,
  cudaMemoryTypeManaged
};

struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};

namespace host_cuda {

// What the driver is said to be; tests change it. No device: count 0.
struct Machine {
  int devices = 2, driver = 13000;
  int clusters = 1, ptx = 90;  // whether blocks run in clusters, and what kernels were compiled for
};
inline Machine machine;
inline thread_local int current_device = 0;

// Says whose memory the bytes are: a device's, or with -1 the host's.
void give_to_device(const void* begin, std::size_t bytes, int device);
int device_of(const void* pointer);

}  // namespace host_cuda

inline cudaError_t cudaDriverGetVersion(int* version) {
  return *version = host_cuda::machine.driver, cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = host_cuda::machine.devices;
  if (host_cuda::machine.driver < CUDART_VERSION) return cudaErrorInsufficientDriver;
  return *count ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = host_cuda::current_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return host_cuda::current_device = device, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  // So few multiprocessors that small tests see chunks of several sizes.
  *value = attribute == cudaDevAttrClusterLaunch ? host_cuda::machine.clusters : 2;
  return cudaSuccess;
}

struct cudaFuncAttributes {
  int ptxVersion;
};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  return attributes->ptxVersion = host_cuda::machine.ptx, cudaSuccess;
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const int device = host_cuda::device_of(pointer);
  *attributes = {device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice, device};
  return cudaSuccess;
}
