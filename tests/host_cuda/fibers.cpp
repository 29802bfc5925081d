// The shim itself: barriers, shuffles, shared memory, atomics and captured graphs behave as a device's.
#include "cuda/cluster.cuh"
#include "native.hpp"
#include "parts.hpp"

namespace fastopt::test {
namespace {

// Each thread hands its number on to its neighbour, `rounds` times, through dynamic shared memory.
void rotate(int* out, int rounds) {
  int* slots = shared_memory<int>();
  int value = int(threadIdx.x);
  for (int r = 0; r < rounds; ++r) {
    slots[threadIdx.x] = value;
    __syncthreads();
    value = slots[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

// A sum over the warp by two kinds of shuffles, and the number of threads that came before in *tickets.
void sum_of_warp(int* sums, int* tickets, int* ticket) {
  int across = int(threadIdx.x), down = across;
  for (int offset = 16; offset > 0; offset /= 2) {
    across += __shfl_xor_sync(~0u, across, offset);
    down += __shfl_down_sync(~0u, down, unsigned(offset));
  }
  if (threadIdx.x % 32 == 0) CHECK(across == down);
  sums[threadIdx.x] = across;
  ticket[threadIdx.x] = atomicAdd(tickets, 1);
}

// Each block hands its number on to the next of its cluster, `rounds` times.
void rotate_blocks(int* out, int cluster, int rounds) {
  int* slots = shared_memory<int>();
  const int rank = int(blockIdx.x) % cluster;
  int value = int(blockIdx.x);
  for (int r = 0; r < rounds; ++r) {
    if (threadIdx.x == blockDim.x - 1) slots[r % 2] = value;
    wait_for_cluster();
    value = *shared_of((rank + 1) % cluster, slots + r % 2);
    __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = value;
  wait_for_cluster();
}

void check_clusters() {
  for (const int threads : {1, 33, 256})
    for (const int cluster : {1, 2, 5})
      for (const int rounds : {1, 2, 5}) {
        const Guarded<int> out(3 * cluster * threads, -1);
        launch_clusters(rotate_blocks, 3 * cluster, cluster, threads, 2 * int(sizeof(int)), nullptr,
                        out.data(), cluster, rounds);
        for (Index i = 0; i < out.size(); ++i) {
          const int block = int(i) / threads, first = block / cluster * cluster;
          CHECK(out[i] == first + (block - first + rounds) % cluster);
        }
      }
}

void add_one(int* sum) { ++*sum; }

// Captures what f queues; null where the capture fails.
template <class F>
cudaGraphExec_t capture(cudaStream_t stream, const F& f) {
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  f();
  cudaGraph_t graph;
  cudaGraphExec_t exec = nullptr;
  const cudaError_t error = cudaStreamEndCapture(stream, &graph);
  CHECK((error == cudaSuccess) == (graph != nullptr));
  if (error != cudaSuccess) {
    CHECK(cudaGetLastError() == error);
    return nullptr;
  }
  CHECK(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  return exec;
}

// A graph runs what was queued when it was captured, each time it is launched, and not before.
void check_replays(cudaStream_t stream) {
  int sum = 0, seen = -1, cleared = 7;
  const cudaGraphExec_t exec = capture(stream, [&] {
    launch(add_one, 1, 1, 0, stream, &sum);
    CHECK(cudaMemcpyAsync(&seen, &sum, sizeof(int), cudaMemcpyDeviceToDevice, stream) == cudaSuccess);
    CHECK(cudaMemsetAsync(&cleared, 0, sizeof(int), stream) == cudaSuccess);
  });
  CHECK(exec && sum == 0 && seen == -1 && cleared == 7);
  for (const int round : {1, 2}) {
    CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
    CHECK(sum == round && seen == round && cleared == 0);
  }
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
}

// What no capture may contain is refused and spoils it.
void check_refusals(cudaStream_t stream) {
  int host = 0, device = 0;
  void* memory = nullptr;
  cudaEvent_t event;
  CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
  const std::function<cudaError_t()> calls[] = {
      [&] { return cudaMalloc(&memory, 8); },
      [&] { return cudaFree(&device); },
      [&] { return cudaMemcpy(&device, &host, sizeof(int), cudaMemcpyHostToDevice); },
      [&] { return cudaMemcpyAsync(&device, &host, sizeof(int), cudaMemcpyHostToDevice, stream); },
      [&] { return cudaMemsetAsync(&device, 1, sizeof(int), nullptr); },
      [&] { return cudaStreamSynchronize(stream); },
      [&] { return cudaDeviceSynchronize(); },
      [&] { return cudaEventSynchronize(event); },
      [&] { return cudaEventQuery(event); },
  };
  for (const auto& call : calls) CHECK(!capture(stream, [&] { CHECK(call() != cudaSuccess); }));
  CHECK(device == 0 && !memory);
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal) != cudaSuccess);
  CHECK(cudaGetLastError() == cudaErrorStreamCaptureUnsupported && cudaGetLastError() == cudaSuccess);
  CHECK(cudaEventDestroy(event) == cudaSuccess);
}

void check_graphs() {
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  check_replays(stream);
  check_refusals(stream);
  check_replays(stream);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

}  // namespace

void test_cuda_fibers() {
  check_graphs();
  check_clusters();
  for (const int threads : {1, 31, 32, 33, 256})
    for (const int rounds : {1, 2, 5}) {
      const Guarded<int> out(3 * threads, -1);
      launch(rotate, 3, threads, int(sizeof(int)) * threads, nullptr, out.data(), rounds);
      for (Index i = 0; i < out.size(); ++i) CHECK(out[i] == (int(i) % threads + rounds) % threads);
    }
  for (const int threads : {32, 64, 256}) {
    int tickets = 0;
    const Guarded<int> sums(threads, -1), ticket(threads, -1), seen(threads, 0);
    launch(sum_of_warp, 1, threads, 0, nullptr, sums.data(), &tickets, ticket.data());
    CHECK(tickets == threads);
    for (int t = 0; t < threads; ++t) {
      const int first = t / 32 * 32;
      CHECK(sums[t] == 32 * first + 31 * 16);
      CHECK(ticket[t] >= 0 && ticket[t] < threads && seen[ticket[t]]++ == 0);
    }
  }
}

}  // namespace fastopt::test
