// The CUDA kernels as host code calls them. Pointers are to device memory where not said otherwise; work is
// queued on the stream, and nothing waits for it. A CUDA error is a std::runtime_error with CUDA's message.
#pragma once

#include <memory>
#include <vector>

#include "core/plan.hpp"

struct CUstream_st;

namespace fastopt {

using CudaStream = CUstream_st*;

// What a step reads from device memory, so that a captured graph replays with new values.
struct DeviceStep {
  const void* const* grads;  // one for each tensor; null: skipped
  const double* coefs;       // rows of `width` coefficients
  Index width;
  const std::int32_t* rows = nullptr;       // null, or the row of each tensor; without, all use the first
  const double* grad_scale = nullptr;       // null, or one more factor of all gradients
  const std::int32_t* found_inf = nullptr;  // null, or a flag: the step changes nothing where it is set
};

// What a norm of all gradients leaves in device memory for the step that follows; null: not wanted.
struct DeviceNorm {
  const void* const* grads;           // one for each tensor; null: skipped
  double max_norm;                    // infinite: grad_scale becomes 1
  double* norm = nullptr;             // the norm
  double* grad_scale = nullptr;       // what scales gradients of this norm to max_norm
  std::int32_t* found_inf = nullptr;  // 1 where the norm is not finite, else 0
};

struct DeviceFree {
  void operator()(void* memory) const;
};
template <class T>
using DeviceArray = std::unique_ptr<T, DeviceFree>;

// Many tensors with their chunks in device memory, put there once: a step of all of them is one launch.
class DevicePlan {
 public:
  // The tensors' own pointers are to device memory; the vector is copied.
  DevicePlan(int rule, const std::vector<PlanTensor>& tensors);
  void step(const DeviceStep& step, CudaStream stream) const;

  // In one launch, with the bits of StepPlan::norm; monoid: abs_sum, sum_squares or abs_max. Norms of one
  // plan share its room for partial results, so they are for one stream at a time.
  void norm(Monoid monoid, const DeviceNorm& norm, CudaStream stream) const;

 private:
  int rule_;
  bool narrow_ = false, wide_ = false;  // there are tensors that compute in float, in double
  Index chunks_size_ = 0, norm_chunks_size_ = 0;
  DeviceArray<PlanTensor> tensors_;
  DeviceArray<PlanChunk> chunks_, norm_chunks_;
  DeviceArray<double> partials_;       // of a norm, one for each of its chunks
  DeviceArray<unsigned> blocks_done_;  // of the running norm
};

// The arguments of the CPU's kernels over n elements; `params` stays a host pointer.
void activation_on_device(DType dtype, const ActivationArgs& args, Index n, CudaStream stream);
void activation_grad_on_device(DType dtype, const ActivationGradArgs& args, Index n, CudaStream stream);
void dropout_on_device(DType dtype, const DropoutArgs& args, Index n, CudaStream stream);

}  // namespace fastopt
