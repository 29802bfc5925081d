// Streams of our own, events, pinned memory and graphs as host code needs them, without a CUDA header.
#pragma once

#include <functional>

#include "cuda/runtime.hpp"

struct CUevent_st;
struct CUgraphExec_st;

namespace fastopt {

// Copies that are queued on the stream. The host's memory is pinned, or the stream is not being captured.
void copy_to_device(void* to, const void* from, Index bytes, CudaStream stream);
void copy_to_host(void* to, const void* from, Index bytes, CudaStream stream);
void copy_in_device(void* to, const void* from, Index bytes, CudaStream stream);
void clear_in_device(void* memory, Index bytes, CudaStream stream);

// The legacy default stream waits for all others, so it cannot be captured.
bool can_capture(CudaStream stream);

// A stream that waits for no other.
class OwnStream {
 public:
  OwnStream();
  ~OwnStream();
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  CudaStream get() const { return stream_; }

 private:
  CudaStream stream_;
};

// A point in the work of a stream. Before its first record nothing has to be waited for.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(CudaStream stream);
  void hold(CudaStream stream) const;  // what is queued there from now on waits for this point
  void wait() const;

 private:
  CUevent_st* event_;
};

// Host memory that the device copies from and to by itself.
class Pinned {
 public:
  Pinned() = default;
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  // At least so many bytes; what they held is lost when they grow.
  char* reserve(Index bytes);
  char* get() const { return memory_; }

 private:
  char* memory_ = nullptr;
  Index bytes_ = 0;
};

// Work that has been captured once and is launched as a whole.
class Graph {
 public:
  // Captures what `queue` puts on the stream, which does not run then.
  Graph(CudaStream stream, const std::function<void()>& queue);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(CudaStream stream) const;

 private:
  CUgraphExec_st* exec_ = nullptr;
};

}  // namespace fastopt
