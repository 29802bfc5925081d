// What the kernels of optimizer steps share: which piece of which tensor a block updates, and with what.
#pragma once

#include "cuda/packs.cuh"
#include "formulas/common.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

struct StepPiece {
  PlanChunk chunk;
  const PlanTensor* tensor;
  const void* grad;  // of the whole tensor
  const double* coefs;
  double scale;
  Factors factors;
};

// False where there is nothing to do. What is null in `step` has travelled with the launch.
__device__ __forceinline__ bool find_piece(const PlanTensor* tensors, const PlanChunk* chunks,
                                           const DeviceStep& step, const double* own_coefs,
                                           const void* const* own_grads, StepPiece& piece) {
  if (step.found_inf && *step.found_inf) return false;
  piece.chunk = chunks[blockIdx.x];
  piece.tensor = tensors + piece.chunk.tensor;
  piece.grad = (step.grads ? step.grads : own_grads)[piece.chunk.tensor];
  if (!piece.grad) return false;
  piece.coefs = step.coefs ? step.coefs : own_coefs;
  piece.coefs += (step.rows ? step.rows[piece.chunk.tensor] : 0) * step.width;
  piece.scale = step.grad_scale ? step.grad_scale[step.scale_each ? piece.chunk.tensor : 0] : 1.0;
  if (const double* own = step.factors) {
    own += Factors::kSize * piece.chunk.tensor;
    piece.factors = {own[0], own[1], own[2]};
  }
  return true;
}

// One launch over tensors of which some are packed; noise: the table, in device memory.
void launch_packed_step(int rule, Index chunks_size, const PlanTensor* tensors, const PlanChunk* chunks,
                        const DeviceStep& step, const std::uint32_t* noise, const Inline<double>& coefs,
                        const Inline<const void*>& grads, CudaStream stream);

}  // namespace FASTOPT_ISA
}  // namespace fastopt
