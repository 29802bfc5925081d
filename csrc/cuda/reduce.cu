// The reduce driver: norms of all gradients of a plan, with what a step makes of them. The lanes, blocks,
// chunks and the order of merging are the CPU's, and so are the bits.
#include "core/parallel.hpp"
#include "cuda/packs.cuh"
#include "formulas/monoids.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// A thread is one lane of one block of the chunk, so a chunk takes all threads.
constexpr int kLaneBlocks = kThreads / kLanes;
static_assert(kLaneBlocks * kLaneBlock == kChunk);

template <class M, class S>
__device__ double lane_value(const void* grad, const PlanChunk& chunk) {
  const S* x = static_cast<const S*>(grad) + chunk.begin;
  const Index first = threadIdx.x / kLanes * kLaneBlock, n = chunk.end - chunk.begin;
  const Index end = first + kLaneBlock < n ? first + kLaneBlock : n;
  double part = M::identity;
  for (Index i = first + threadIdx.x % kLanes; i < end; i += kLanes) part = M::push(part, double(load(x[i])));
  return part;
}

template <class M>
__device__ double lane_value(DType dtype, const void* grad, const PlanChunk& chunk) {
  switch (dtype) {
    case DType::f32:
      return lane_value<M, float>(grad, chunk);
    case DType::f64:
      return lane_value<M, double>(grad, chunk);
    case DType::bf16:
      return lane_value<M, Bf16>(grad, chunk);
    default:
      return lane_value<M, F16>(grad, chunk);
  }
}

// The lanes of each block merged in the CPU's tree, then the blocks in their order; for thread 0.
template <class M>
__device__ double merge_lanes(double part) {
  __shared__ double blocks[kLaneBlocks];
  for (unsigned distance = kLanes / 2; distance > 0; distance /= 2)
    part = M::merge(part, __shfl_down_sync(~0u, part, distance));
  if (threadIdx.x % kLanes == 0) blocks[threadIdx.x / kLanes] = part;
  __syncthreads();
  double total = M::identity;
  if (threadIdx.x == 0)
    for (int b = 0; b < kLaneBlocks; ++b) total = M::merge(total, blocks[b]);
  return total;
}

// Leaves the block's part; true in all threads of the block that is the last to do so.
__device__ bool is_last_block(double part, double* partials, unsigned* blocks_done) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = part;
    __threadfence();  // the part is there before the count says so
    last = atomicAdd(blocks_done, 1u) == gridDim.x - 1;
    if (last) *blocks_done = 0;  // for the next norm
  }
  __syncthreads();
  return last;
}

// All parts merged in their order, as the CPU does; for thread 0. The others fetch them.
template <class M>
__device__ double merge_partials(const volatile double* partials, Index n) {
  __shared__ double fetched[kThreads];
  __threadfence();
  double total = M::identity;
  for (Index at = 0; at < n; at += kThreads) {
    if (at + threadIdx.x < n) fetched[threadIdx.x] = partials[at + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
      for (int i = 0; i < kThreads && at + i < n; ++i) total = M::merge(total, fetched[i]);
    __syncthreads();
  }
  return total;
}

__device__ void leave(double norm, const DeviceNorm& out) {
  if (out.norm) *out.norm = norm;
  if (out.grad_scale) *out.grad_scale = is_finite(out.max_norm) ? clip_factor(norm, out.max_norm) : 1.0;
  if (out.found_inf) *out.found_inf = !is_finite(norm);
}

template <class M, bool Root>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const PlanTensor* tensors, const PlanChunk* chunks, double* partials, unsigned* blocks_done,
                DeviceNorm norm, const __grid_constant__ Inline<const void*> own_grads) {
  const PlanChunk chunk = chunks[blockIdx.x];
  const void* grad = (norm.grads ? norm.grads : own_grads.at)[chunk.tensor];
  double part = M::identity;
  if (grad) part = merge_lanes<M>(lane_value<M>(tensors[chunk.tensor].dtype, grad, chunk));
  if (!is_last_block(part, partials, blocks_done)) return;
  const double total = merge_partials<M>(partials, gridDim.x);
  if (threadIdx.x == 0) leave(Root ? sqrt(total) : total, norm);
}

// The norm of no gradients.
__global__ void empty_norm_kernel(DeviceNorm norm) { leave(0.0, norm); }

}  // namespace
}  // namespace FASTOPT_ISA

void DevicePlan::norm(Monoid monoid, const DeviceNorm& norm, CudaStream stream) const {
  launch_norm(monoid, norm, Inline<const void*>(), stream);
}

void DevicePlan::norm_from_host(Monoid monoid, DeviceNorm norm, CudaStream stream) {
  Inline<const void*> grads;
  norm.grads = place_grads(norm.grads, grads, stream);
  launch_norm(monoid, norm, grads, stream);
}

void DevicePlan::launch_norm(Monoid monoid, const DeviceNorm& norm, const Inline<const void*>& grads,
                             CudaStream stream) const {
  if (norm_chunks_size_ == 0) return launch(empty_norm_kernel, 1, 1, 0, stream, norm);
  const auto kernel = monoid == Monoid::sum_squares ? norm_kernel<SumSquares<double>, true>
                      : monoid == Monoid::abs_sum   ? norm_kernel<AbsSum<double>, false>
                                                    : norm_kernel<AbsMax<double>, false>;
  launch(kernel, norm_chunks_size_, kThreads, 0, stream, tensors_.get(), norm_chunks_.get(), partials_.get(),
         blocks_done_.get(), norm, grads);
}

}  // namespace fastopt
