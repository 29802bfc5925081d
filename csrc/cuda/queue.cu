#include "cuda/queue.hpp"

#include "cuda/launch.cuh"

namespace fastopt {

void copy_to_device(void* to, const void* from, Index bytes, CudaStream stream) {
  check(cudaMemcpyAsync(to, from, std::size_t(bytes), cudaMemcpyHostToDevice, stream));
}
void copy_to_host(void* to, const void* from, Index bytes, CudaStream stream) {
  check(cudaMemcpyAsync(to, from, std::size_t(bytes), cudaMemcpyDeviceToHost, stream));
}
void copy_in_device(void* to, const void* from, Index bytes, CudaStream stream) {
  check(cudaMemcpyAsync(to, from, std::size_t(bytes), cudaMemcpyDeviceToDevice, stream));
}
void clear_in_device(void* memory, Index bytes, CudaStream stream) {
  check(cudaMemsetAsync(memory, 0, std::size_t(bytes), stream));
}

bool can_capture(CudaStream stream) { return stream != nullptr && stream != cudaStreamLegacy; }

OwnStream::OwnStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
OwnStream::~OwnStream() { cudaStreamDestroy(stream_); }

Event::Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
Event::~Event() { cudaEventDestroy(event_); }
void Event::record(CudaStream stream) { check(cudaEventRecord(event_, stream)); }
void Event::hold(CudaStream stream) const { check(cudaStreamWaitEvent(stream, event_, 0)); }
void Event::wait() const { check(cudaEventSynchronize(event_)); }

Pinned::~Pinned() { cudaFreeHost(memory_); }
char* Pinned::reserve(Index bytes) {
  if (bytes <= bytes_) return memory_;
  cudaFreeHost(memory_);
  memory_ = nullptr;
  bytes_ = 0;
  void* memory;
  check(cudaMallocHost(&memory, std::size_t(bytes)));
  memory_ = static_cast<char*>(memory);
  bytes_ = bytes;
  return memory_;
}

Graph::Graph(CudaStream stream, const std::function<void()>& queue) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    queue();
  } catch (...) {
    // The capture ends whatever happened, or the stream would be of no more use.
    if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream, &graph));
  const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
  cudaGraphDestroy(graph);
  check(error);
}
Graph::~Graph() { cudaGraphExecDestroy(exec_); }
void Graph::launch(CudaStream stream) const { check(cudaGraphLaunch(exec_, stream)); }

}  // namespace fastopt
