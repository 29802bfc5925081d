// The shim itself: barriers, shuffles, shared memory and atomics behave as a device's.
#include "cuda/launch.cuh"
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

}  // namespace

void test_cuda_fibers() {
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
