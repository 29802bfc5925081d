#include "cuda/runtime.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cuda/launch.cuh"

namespace fastopt {
namespace {

constexpr int kDriverNeeded = CUDART_VERSION / 1000 * 1000;  // any of the same major version will do

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The memory of one stream. What it has outgrown is kept: a captured graph may still name it.
struct StreamMemory {
  std::mutex mutex;
  std::vector<DeviceArray<void>> pieces;
  Index bytes = 0;
};

StreamMemory& memory_of(CudaStream stream) {
  static std::mutex mutex;
  // Never destroyed: the driver may be gone before the process's own objects are.
  static auto& streams = *new std::map<std::pair<int, CudaStream>, StreamMemory>;
  int device;
  check(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  return streams[{device, stream}];
}

}  // namespace

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  cudaGetLastError();  // a refusal is not to be found by the next call
  const int driver = driver_version();
  if (driver == 0)
    throw DeviceError("there is no NVIDIA driver: install the one of your GPU, version 580 or newer");
  if (driver < kDriverNeeded)
    throw DeviceError("the NVIDIA driver is for CUDA " + version_text(driver) +
                      ", this build of fastopt needs CUDA " + version_text(kDriverNeeded) +
                      ": install driver 580 or newer");
  throw DeviceError(std::string("no NVIDIA GPU can be used: ") +
                    (error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error)));
}

int pointer_device(const void* pointer) {
  cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  const bool on_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return on_device ? attributes.device : -1;
}

bool is_capturing(CudaStream stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

void synchronize(CudaStream stream) { check(cudaStreamSynchronize(stream)); }
void synchronize_device() { check(cudaDeviceSynchronize()); }

DeviceGuard::DeviceGuard(int device) : device_(device) {
  check(cudaGetDevice(&before_));
  if (before_ != device_) check(cudaSetDevice(device_));
}
DeviceGuard::~DeviceGuard() {
  if (before_ != device_) cudaSetDevice(before_);
}

void DeviceFree::operator()(void* memory) const { cudaFree(memory); }

DeviceArray<void> device_memory(Index bytes) {
  void* memory;
  if (cudaMalloc(&memory, std::size_t(bytes)) != cudaSuccess) {
    const char* why = cudaGetErrorString(cudaGetLastError());
    throw DeviceError("there are no " + std::to_string(bytes) + " bytes of device memory: " + why);
  }
  return DeviceArray<void>(memory);
}

Scratch::Scratch(CudaStream stream, Index bytes) {
  StreamMemory& memory = memory_of(stream);
  lock_ = std::unique_lock(memory.mutex);
  if (memory.pieces.empty() || memory.bytes < bytes) {
    const Index wanted = std::max<Index>({bytes, 2 * memory.bytes, 1 << 16});
    memory.pieces.push_back(device_memory(wanted));
    memory.bytes = wanted;
    check(cudaMemsetAsync(memory.pieces.back().get(), 0, 64, stream));
  }
  memory_ = memory.pieces.back().get();
}

}  // namespace fastopt
