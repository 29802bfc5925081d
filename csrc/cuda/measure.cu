// The first pass of steps that depend on whole tensors: one launch, a block for each chunk, with the lanes,
// chunks and order of merging of the CPU's.
#include <type_traits>

#include "cuda/reductions.cuh"
#include "formulas/common.hpp"
#include "formulas/packed.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

using M = SumSquares<double>;

template <bool Signed>
__device__ float decoded(const void* codes, const std::uint8_t* exponents, Index i) {
  using Code = ByteCode<Signed>;
  return Code::value(static_cast<const std::uint8_t*>(codes)[i], Code::base(exponents[i / kGroup]));
}

// Element i of a state and of the parameter, as the rule computes with them.
template <class T>
__device__ T state_at(const PlanTensor& tensor, int s, Index i) {
  const void* const from = tensor.states[s];
  switch (tensor.packing.states[s]) {
    case Stored::bf16:
      return T(load(static_cast<const Bf16*>(from)[i]));
    case Stored::signed_byte:
      return T(decoded<true>(from, tensor.packing.exponents[s], i));
    case Stored::unsigned_byte:
      return T(decoded<false>(from, tensor.packing.exponents[s], i));
    default:
      return static_cast<const T*>(from)[i];
  }
}
template <class P>
__device__ Compute<P> parameter_at(const PlanTensor& tensor, Index i) {
  const P p = static_cast<const P*>(tensor.p)[i];
  if constexpr (std::is_same_v<P, Bf16>) {
    if (tensor.packing.remainder) return join(p, tensor.packing.remainder[i]);
  }
  return load(p);
}

// The thread's lane of one chunk.
template <template <class> class Rule, class P>
__device__ Measured measure_lane(const PlanTensor& tensor, const PlanChunk& chunk, const void* grad,
                                 const double* coefs, double scale) {
  using T = Compute<P>;
  const Common<T> common(coefs, scale);
  const Rule<T> rule(coefs + kCommonCoefs);
  const bool bounded = is_bounded(coefs);
  const P* const g = static_cast<const P*>(grad);
  Measured part = {M::identity, M::identity};
  for_lane(chunk.begin, chunk.end, [&](Index i) {
    const T old = parameter_at<P>(tensor, i), raw = load(g[i]);
    T u = bounded ? common.template gradient<true>(raw, old) : common.template gradient<false>(raw, old);
    if constexpr (measures<Rule>) {
      T state[2] = {state_at<T>(tensor, 0, i), state_at<T>(tensor, 1, i)};
      u = rule(u, old, state);
    }
    part.update = M::push(part.update, double(u));
    part.param = M::push(part.param, double(old));
  });
  return part;
}

template <template <class> class Rule>
__device__ Measured measure_lane(const PlanTensor& tensor, const PlanChunk& chunk, const void* grad,
                                 const double* coefs, double scale) {
  switch (tensor.dtype) {
    case DType::f32:
      return measure_lane<Rule, float>(tensor, chunk, grad, coefs, scale);
    case DType::f64:
      return measure_lane<Rule, double>(tensor, chunk, grad, coefs, scale);
    case DType::bf16:
      return measure_lane<Rule, Bf16>(tensor, chunk, grad, coefs, scale);
    default:
      return measure_lane<Rule, F16>(tensor, chunk, grad, coefs, scale);
  }
}

// partials: those of directions, then as many of parameters; out likewise.
template <template <class> class Rule>
__global__ void __launch_bounds__(kThreads)
    measure_kernel(const PlanTensor* tensors, Index n, const PlanChunk* chunks, double* partials,
                   unsigned* blocks_done, DeviceStep step, const __grid_constant__ Inline<double> own_coefs,
                   const __grid_constant__ Inline<const void*> own_grads, double* out) {
  if (blockIdx.x == 0)
    for (Index t = threadIdx.x; t < n; t += kThreads)
      if (tensors[t].n == 0) out[t] = out[n + t] = 0.0;
  const PlanChunk chunk = chunks[blockIdx.x];
  const PlanTensor& tensor = tensors[chunk.tensor];
  const void* grad = (step.grads ? step.grads : own_grads.at)[chunk.tensor];
  Measured part = {M::identity, M::identity};
  if (grad) {
    const double* coefs = step.coefs ? step.coefs : own_coefs.at;
    coefs += (step.rows ? step.rows[chunk.tensor] : 0) * step.width;
    part = measure_lane<Rule>(tensor, chunk, grad, coefs, step.grad_scale ? *step.grad_scale : 1.0);
  }
  const double update = merge_lanes<M>(part.update);
  __syncthreads();  // thread 0 has read what the lanes left
  const double param = merge_lanes<M>(part.param);
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = update;
    partials[gridDim.x + blockIdx.x] = param;
  }
  const Index size = chunk_blocks(tensor.n), first = Index(blockIdx.x) - chunk.begin / kChunk;
  if (!is_last(blocks_done + chunk.tensor, unsigned(size))) return;
  const double updates = merge_partials<M>(partials + first, size);
  const double params = merge_partials<M>(partials + gridDim.x + first, size);
  if (threadIdx.x == 0) {
    out[chunk.tensor] = sqrt(updates);
    out[n + chunk.tensor] = sqrt(params);
  }
}

using Kernel = void (*)(const PlanTensor* tensors, Index n, const PlanChunk* chunks, double* partials,
                        unsigned* blocks_done, DeviceStep step, Inline<double> own_coefs,
                        Inline<const void*> own_grads, double* out);

template <template <class> class Rule>
constexpr Kernel kernel_of() {
  if constexpr (measures<Rule>) {
    return measure_kernel<Rule>;
  } else {
    return measure_kernel<Sgd>;
  }
}

template <class List>
struct Table;
template <template <class> class... Rule>
struct Table<Formulas<Rule...>> {
  static constexpr Kernel rows[] = {kernel_of<Rule>()...};
};

}  // namespace
}  // namespace FASTOPT_ISA

void DevicePlan::measure_from_host(DeviceStep step, Index n_coefs, double* out, CudaStream stream) {
  Inline<double> coefs;
  Inline<const void*> grads;
  place(step, n_coefs, coefs, grads, stream);
  if (norm_chunks_size_ == 0) {
    check(cudaMemsetAsync(out, 0, std::size_t(2 * size_) * sizeof(double), stream));
    return;
  }
  launch(Table<Rules>::rows[rule_], norm_chunks_size_, kThreads, 0, stream, tensors_.get(), size_,
         norm_chunks_.get(), partials_.get(), blocks_done_.get(), step, coefs, grads, out);
}

}  // namespace fastopt
