// Devices, pointers and streams as host code needs them, without a CUDA header.
#pragma once

#include <memory>
#include <mutex>
#include <stdexcept>

#include "core/array.hpp"

struct CUstream_st;

namespace fastopt {

using CudaStream = CUstream_st*;

// There is no device to run on, or the driver refuses; the text says what to install.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// How many devices there are; DeviceError where there is none, no driver, or one too old.
int device_count();
// The newest CUDA version that the driver knows, as 1000 major + 10 minor; 0 without a driver.
int driver_version();

// The device whose memory this is; -1 for the host's.
int pointer_device(const void* pointer);

// Whether work on the stream is being recorded into a graph rather than run.
bool is_capturing(CudaStream stream);
void synchronize(CudaStream stream);
void synchronize_device();  // all streams of the current one

// Makes a device the calling thread's current one.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_, device_;
};

struct DeviceFree {
  void operator()(void* memory) const;
};
template <class T>
using DeviceArray = std::unique_ptr<T, DeviceFree>;

// Memory of the current device. DeviceError where there is not as much.
DeviceArray<void> device_memory(Index bytes);

// Scratch memory of a stream, which kernels queued on it use in turn: no other call gets it until this object
// is gone. Its first 64 bytes are zero for whoever leaves them so.
class Scratch {
 public:
  Scratch(CudaStream stream, Index bytes);
  void* get() const { return memory_; }

 private:
  void* memory_;
  std::unique_lock<std::mutex> lock_;
};

}  // namespace fastopt
