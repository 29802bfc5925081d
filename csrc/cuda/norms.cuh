// A norm of all gradients of a plan: a block for each chunk, and the last one has it.
#pragma once

#include <type_traits>

#include "cuda/reductions.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {

// read(x): what is taken in of each element.
template <class M, class S, class Read>
__device__ double lane_value(const void* grad, const PlanChunk& chunk, const Read& read) {
  const S* x = static_cast<const S*>(grad);
  double part = M::identity;
  for_lane(chunk.begin, chunk.end, [&](Index i) { part = M::push(part, read(double(load(x[i])))); });
  return part;
}

template <class M, class Read>
__device__ double lane_value(DType dtype, const void* grad, const PlanChunk& chunk, const Read& read) {
  switch (dtype) {
    case DType::f32:
      return lane_value<M, float>(grad, chunk, read);
    case DType::f64:
      return lane_value<M, double>(grad, chunk, read);
    case DType::bf16:
      return lane_value<M, Bf16>(grad, chunk, read);
    default:
      return lane_value<M, F16>(grad, chunk, read);
  }
}

struct AsItIs {
  __device__ double operator()(double x) const { return x; }
};

// A plan's tensors and their chunks, and room for what the blocks leave.
struct NormChunks {
  const PlanTensor* tensors;
  const PlanChunk* chunks;
  double* partials;
  unsigned* blocks_done;
};

// True in all threads of the block that is the last to finish; its thread 0 has the norm.
template <class M, class Read>
__device__ __forceinline__ bool norm_of_all(const NormChunks& at, const void* const* grads, const Read& read,
                                            double& norm) {
  const PlanChunk chunk = at.chunks[blockIdx.x];
  const void* grad = grads[chunk.tensor];
  double part = M::identity;
  if (grad) part = merge_lanes<M>(lane_value<M>(at.tensors[chunk.tensor].dtype, grad, chunk, read));
  if (!is_last_block(part, at.partials, at.blocks_done)) return false;
  norm = merge_partials<M>(at.partials, gridDim.x);
  if constexpr (std::is_same_v<M, SumSquares<double>>) norm = sqrt(norm);
  return true;
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
