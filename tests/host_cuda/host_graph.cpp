#include "host_graph.hpp"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

using Operations = std::vector<std::function<void()>>;

struct CUstream_st {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  Operations recorded;
};
struct CUevent_st {
  bool in_capture = false;  // its last record is part of a graph: nothing to wait for
  float at = 0;             // the time of it
};
struct CUgraph_st {
  Operations operations;
};
struct CUgraphExec_st {
  Operations operations;
};

namespace host_cuda {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStream_t captured = nullptr;  // the stream that this thread captures
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeThreadLocal;
thread_local unsigned long operations_replayed = 0;
thread_local unsigned long host_waits = 0;

std::mutex pinned_mutex;
std::map<const char*, std::size_t>& pinned() {
  static std::map<const char*, std::size_t> blocks;
  return blocks;
}

bool is_pinned(const void* memory, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  const char* const begin = static_cast<const char*>(memory);
  auto after = pinned().upper_bound(begin);
  if (after == pinned().begin()) return false;
  --after;
  return begin + bytes <= after->first + after->second;
}

bool is_legacy(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy; }
bool is_capturing(cudaStream_t stream) {
  return !is_legacy(stream) && stream->status != cudaStreamCaptureStatusNone;
}

cudaError_t spoil(cudaError_t error) {
  if (captured) captured->status = cudaStreamCaptureStatusInvalidated;
  return leave(error);
}

}  // namespace

cudaError_t leave(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t refuse_in_capture() {
  const bool refused = captured && capture_mode != cudaStreamCaptureModeRelaxed;
  return refused ? spoil(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

// The legacy stream waits for all others, which would make it part of the capture.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> operation) {
  if (is_legacy(stream) && captured) return spoil(cudaErrorStreamCaptureImplicit);
  if (!is_capturing(stream)) return operation(), cudaSuccess;
  if (stream->status == cudaStreamCaptureStatusInvalidated) return leave(cudaErrorStreamCaptureInvalidated);
  stream->recorded.push_back(std::move(operation));
  return cudaSuccess;
}

unsigned long replayed() { return operations_replayed; }
unsigned long waits() { return host_waits; }

}  // namespace host_cuda

using namespace host_cuda;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
  }
  return "unrecognized error code";
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

// Memory -------------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  if (const cudaError_t error = refuse_in_capture()) return error;
  *memory = nullptr;
  if (bytes > host_cuda::most_memory) return host_cuda::leave(cudaErrorMemoryAllocation);
  if (bytes > 0 && posix_memalign(memory, 256, bytes) != 0) return leave(cudaErrorMemoryAllocation);
  if (bytes > 0) std::memset(*memory, 0xff, bytes);  // NaN
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  if (const cudaError_t error = refuse_in_capture()) return error;
  return std::free(memory), cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  if (const cudaError_t error = cudaMalloc(memory, bytes)) return error;
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  pinned()[static_cast<const char*>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  if (const cudaError_t error = refuse_in_capture()) return error;
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  pinned().erase(static_cast<const char*>(memory));
  return std::free(memory), cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  ++host_waits;
  if (const cudaError_t error = refuse_in_capture()) return error;
  return bytes > 0 ? std::memcpy(to, from, bytes) : to, cudaSuccess;
}
cudaError_t cudaMemset(void* to, int byte, std::size_t bytes) {
  if (const cudaError_t error = refuse_in_capture()) return error;
  return bytes > 0 ? std::memset(to, byte, bytes) : to, cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (is_capturing(stream) && ((kind == cudaMemcpyHostToDevice && !is_pinned(from, bytes)) ||
                               (kind == cudaMemcpyDeviceToHost && !is_pinned(to, bytes))))
    return spoil(cudaErrorStreamCaptureUnsupported);
  return enqueue(stream, [=] {
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
}
cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] {
    if (bytes > 0) std::memset(to, byte, bytes);
  });
}

// Streams and events -------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = new CUstream_st, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  ++host_waits;
  return is_capturing(stream) || (is_legacy(stream) && captured) ? spoil(cudaErrorStreamCaptureUnsupported)
                                                                 : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  ++host_waits;
  return refuse_in_capture();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  // Joining another stream's capture is not modelled.
  if (event->in_capture != is_capturing(stream)) return spoil(cudaErrorStreamCaptureUnsupported);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (is_legacy(stream) || captured || is_capturing(stream)) return leave(cudaErrorStreamCaptureUnsupported);
  stream->status = cudaStreamCaptureStatusActive;
  captured = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (stream != captured || !captured) return leave(cudaErrorInvalidValue);
  captured = nullptr;
  const bool whole =
      std::exchange(stream->status, cudaStreamCaptureStatusNone) == cudaStreamCaptureStatusActive;
  const Operations recorded = std::exchange(stream->recorded, {});
  if (!whole) return leave(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st{recorded};
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return std::swap(*mode, capture_mode), cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = is_legacy(stream) ? cudaStreamCaptureStatusNone : stream->status;
  if (capturing) *status = cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new CUevent_st, cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (is_legacy(stream) && captured) return spoil(cudaErrorStreamCaptureImplicit);
  event->in_capture = is_capturing(stream);
  event->at = device_clock;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  ++host_waits;
  return event->in_capture ? spoil(cudaErrorStreamCaptureUnsupported) : refuse_in_capture();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->in_capture ? spoil(cudaErrorStreamCaptureUnsupported) : refuse_in_capture();
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return *milliseconds = end->at - begin->at, cudaSuccess;
}

// Graphs -------------------------------------------------------------------------------------------------

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = nullptr;
  if (const cudaError_t error = refuse_in_capture()) return error;
  *exec = new CUgraphExec_st{graph->operations};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return enqueue(stream, [exec] {
    for (const std::function<void()>& operation : exec->operations) {
      operation();
      ++operations_replayed;
    }
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }

// For Python tests of what a user captures ---------------------------------------------------------------

#define FOR_PYTHON extern "C" __attribute__((visibility("default")))

FOR_PYTHON unsigned long host_cuda_waits() { return waits(); }
FOR_PYTHON int host_cuda_begin_capture(cudaStream_t stream) {
  return cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
}
// Null where something has spoilt the capture.
FOR_PYTHON void* host_cuda_end_capture(cudaStream_t stream) {
  cudaGraph_t graph;
  if (cudaStreamEndCapture(stream, &graph) != cudaSuccess) return cudaGetLastError(), nullptr;
  cudaGraphExec_t exec;
  cudaGraphInstantiate(&exec, graph);
  cudaGraphDestroy(graph);
  return exec;
}
FOR_PYTHON void host_cuda_launch_graph(cudaGraphExec_t exec, cudaStream_t stream) {
  cudaGraphLaunch(exec, stream);
}
FOR_PYTHON void host_cuda_free_graph(cudaGraphExec_t exec) { cudaGraphExecDestroy(exec); }
