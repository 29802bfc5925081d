#include "cuda/progress.hpp"

#include "core/losses.hpp"
#include "core/plan.hpp"
#include "cuda/packs.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

constexpr Index kMostBlocks = 1024;

Index blocks(Index n) {
  const Index all = (n + kThreads - 1) / kThreads;
  return all < kMostBlocks ? all : kMostBlocks;
}

// f(i) for all i below n, dealt to the grid's threads.
template <class F>
__device__ __forceinline__ void for_each(Index n, const F& f) {
  for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += Index(gridDim.x) * blockDim.x)
    f(i);
}

__device__ void blame(Index at, Progress* progress) {
  atomicMin(&progress->stop_at, static_cast<unsigned long long>(at));
  progress->stopped = Progress::found;
}

__global__ void __launch_bounds__(kThreads) check_classes_kernel(ClassCheck check, Progress* progress) {
  for_each(check.samples * check.repeat, [&](Index i) {
    const Index sample = check.order ? check.order[i / check.repeat] : check.first + i / check.repeat;
    const Index at = sample * check.repeat + i % check.repeat;
    if (is_bad_class(check.target[at], check.columns, check.ignore_index)) blame(at, progress);
  });
}

// What an earlier step has found stays.
template <class T>
__global__ void __launch_bounds__(kThreads)
    check_probabilities_kernel(const T* y, Index n, Progress* progress) {
  if (progress->stopped == Progress::settled) return;
  for_each(n, [&](Index i) {
    if (!is_probability(y[i])) blame(i, progress);
  });
}

__global__ void join_norms_kernel(const double* norms, Index n, double max_norm, double* norm,
                                  double* grad_scale) {
  *norm = joint_norm(norms, n);
  *grad_scale = clip_factor(*norm, max_norm);
}

template <class T>
__global__ void __launch_bounds__(kThreads) advance_kernel(Advance advance, Progress* progress) {
  const bool stopped = progress->stopped != Progress::none;
  const Index next = progress->step + 1;
  if (!stopped && next < progress->steps)
    for (Index i = threadIdx.x; i < advance.width; i += blockDim.x)
      advance.coefs[i] = progress->coefs[next * advance.width + i];
  __syncthreads();  // all have read where the run stands
  if (threadIdx.x != 0) return;
  if (stopped) {
    if (progress->stopped == Progress::found && advance.output)
      progress->stop_value = double(static_cast<const T*>(advance.output)[progress->stop_at]);
    progress->stopped = Progress::settled;
    return;
  }
  progress->last_loss = progress->losses[progress->step] =
      double(*reinterpret_cast<const T*>(&progress->loss));
  progress->step = next;
  progress->first += advance.samples;
  progress->mask_offset += std::uint64_t(advance.masks);
}

}  // namespace
}  // namespace FASTOPT_ISA

void check_classes_on_device(const ClassCheck& check, Progress* progress, CudaStream stream) {
  if (check.samples * check.repeat == 0) return;
  launch(check_classes_kernel, blocks(check.samples * check.repeat), kThreads, 0, stream, check, progress);
}

void check_probabilities_on_device(DType dtype, const void* y, Index n, Progress* progress,
                                   CudaStream stream) {
  if (n == 0) return;
  const auto check = [&](const auto* of) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(of)>>;
    launch(check_probabilities_kernel<T>, blocks(n), kThreads, 0, stream, of, n, progress);
  };
  dtype == DType::f32 ? check(static_cast<const float*>(y)) : check(static_cast<const double*>(y));
}

void join_norms_on_device(const double* norms, Index n, double max_norm, double* norm, double* grad_scale,
                          CudaStream stream) {
  launch(join_norms_kernel, 1, 1, 0, stream, norms, n, max_norm, norm, grad_scale);
}

void advance_on_device(const Advance& advance, Progress* progress, CudaStream stream) {
  const auto kernel = advance.dtype == DType::f32 ? advance_kernel<float> : advance_kernel<double>;
  launch(kernel, 1, kThreads, 0, stream, advance, progress);
}

}  // namespace fastopt
