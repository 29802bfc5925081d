// The reduce driver: norms of all gradients of a plan, with what a step makes of them; sums and norms of
// arrays, and sums of columns.
#include "cuda/args.cuh"
#include "cuda/columns.cuh"
#include "cuda/norms.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

__device__ void leave(double norm, const DeviceNorm& out) {
  if (out.norm) *out.norm = norm;
  if (out.grad_scale) *out.grad_scale = is_finite(out.max_norm) ? clip_factor(norm, out.max_norm) : 1.0;
  if (out.found_inf) *out.found_inf = !is_finite(norm);
}

template <class M>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(NormChunks at, DeviceNorm out, const __grid_constant__ Inline<const void*> own_grads) {
  double norm;
  const bool last = norm_of_all<M>(at, out.grads ? out.grads : own_grads.at, AsItIs(), norm);
  if (last && threadIdx.x == 0) leave(norm, out);
}

// Chunks of a tensor are neighbours, and its last block to finish joins them. OfParams: of the parameters,
// whatever `grads` is.
template <bool OfParams>
__global__ void __launch_bounds__(kThreads)
    norms_kernel(const PlanTensor* tensors, Index n, const PlanChunk* chunks, double* partials,
                 unsigned* blocks_done, const void* const* grads,
                 const __grid_constant__ Inline<const void*> own_grads, double* out) {
  using M = SumSquares<double>;
  if (blockIdx.x == 0)  // of tensors without a chunk
    for (Index t = threadIdx.x; t < n; t += kThreads)
      if (tensors[t].n == 0) out[t] = 0.0;
  const PlanChunk chunk = chunks[blockIdx.x];
  const PlanTensor& tensor = tensors[chunk.tensor];
  const void* x = OfParams ? tensor.p : (grads ? grads : own_grads.at)[chunk.tensor];
  double part = M::identity;
  if (x) part = merge_lanes<M>(lane_value<M>(tensor.dtype, x, chunk, AsItIs()));
  if (threadIdx.x == 0) partials[blockIdx.x] = part;
  const Index size = chunk_blocks(tensor.n);
  if (!is_last(blocks_done + chunk.tensor, unsigned(size))) return;
  const double total = merge_partials<M>(partials + blockIdx.x - chunk.begin / kChunk, size);
  if (threadIdx.x == 0) out[chunk.tensor] = sqrt(total);
}

// The norm of no gradients.
__global__ void empty_norm_kernel(DeviceNorm norm) { leave(0.0, norm); }

template <class M, class S>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const S* x, Index n, Parts parts, double* out) {
  const Index begin = Index(blockIdx.x) * kChunk;
  double part = M::identity;
  for_lane(begin, n, [&](Index i) { part = M::push(part, double(load(x[i]))); });
  merge_blocks<M>(merge_lanes<M>(part), parts, [&](double total) { *out = total; });
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    dot_kernel(const S* x, const S* y, Index n, Parts parts, double* out) {
  using M = Dot<double>;
  const Index begin = Index(blockIdx.x) * kChunk;
  double part = M::identity;
  for_lane(begin, n, [&](Index i) { part = M::push(part, double(load(x[i])), double(load(y[i]))); });
  merge_blocks<M>(merge_lanes<M>(part), parts, [&](double total) { *out = total; });
}

// The sum of each column.
template <class S>
struct ColumnSum {
  using Part = double;
  const S* x;
  S* out;
  bool add;

  __device__ Part over(const ColumnTiles& cut, Index column, Index first, Index last, Index step) const {
    double sum = 0.0;
    for (Index row = first; row < last; row += step) sum += double(load(x[row * cut.columns + column]));
    return sum;
  }
  __device__ static Part merge(Part a, Part b) { return a + b; }
  __device__ void leave(Index column, Part sum) const {
    const Compute<S> value = Compute<S>(sum);
    out[column] = Store<S>::from(add ? load(out[column]) + value : value);
  }
};

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
  const auto kernel = monoid == Monoid::sum_squares ? norm_kernel<SumSquares<double>>
                      : monoid == Monoid::abs_sum   ? norm_kernel<AbsSum<double>>
                                                    : norm_kernel<AbsMax<double>>;
  const NormChunks at{tensors_.get(), norm_chunks_.get(), partials_.get(), blocks_done_.get()};
  launch(kernel, norm_chunks_size_, kThreads, 0, stream, at, norm, grads);
}

void DevicePlan::norms_from_host(const void* const* grads, double* out, CudaStream stream) {
  Inline<const void*> own;
  grads = place_grads(grads, own, stream);
  launch_norms(false, grads, own, out, stream);
}

void DevicePlan::param_norms(double* out, CudaStream stream) const {
  launch_norms(true, nullptr, Inline<const void*>(), out, stream);
}

void DevicePlan::launch_norms(bool of_params, const void* const* grads, const Inline<const void*>& own,
                              double* out, CudaStream stream) const {
  if (norm_chunks_size_ == 0) {
    check(cudaMemsetAsync(out, 0, std::size_t(size_) * sizeof(double), stream));
    return;
  }
  launch(of_params ? norms_kernel<true> : norms_kernel<false>, norm_chunks_size_, kThreads, 0, stream,
         tensors_.get(), size_, norm_chunks_.get(), partials_.get(), blocks_done_.get(), grads, own, out);
}

Index sum_scratch_bytes(Index n) {
  const Index blocks = chunk_blocks(n);
  return Parts::kHead + Index(sizeof(double)) * (blocks < kMostParts ? kMostParts : blocks);
}

void reduce_on_device(DType dtype, Monoid monoid, const void* x, Index n, double* out, void* scratch,
                      CudaStream stream) {
  with_storage(dtype, [&]<class S>(S) {
    const auto kernel = monoid == Monoid::sum           ? reduce_kernel<Sum<double>, S>
                        : monoid == Monoid::abs_sum     ? reduce_kernel<AbsSum<double>, S>
                        : monoid == Monoid::sum_squares ? reduce_kernel<SumSquares<double>, S>
                                                        : reduce_kernel<AbsMax<double>, S>;
    launch(kernel, chunk_blocks(n), kThreads, 0, stream, static_cast<const S*>(x), n, Parts(scratch), out);
  });
}

void dot_on_device(DType dtype, const void* x, const void* y, Index n, double* out, void* scratch,
                   CudaStream stream) {
  with_storage(dtype, [&]<class S>(S) {
    launch(dot_kernel<S>, chunk_blocks(n), kThreads, 0, stream, static_cast<const S*>(x),
           static_cast<const S*>(y), n, Parts(scratch), out);
  });
}

Index column_sums_scratch_bytes(Index rows, Index columns) {
  return fold_scratch_bytes(rows, columns, sizeof(double));
}

void column_sums_on_device(DType dtype, const void* x, Index rows, Index columns, void* out, bool add,
                           void* scratch, CudaStream stream) {
  with_storage(dtype, [&]<class S>(S) {
    const ColumnSum<S> fold{static_cast<const S*>(x), static_cast<S*>(out), add};
    fold_columns(fold, rows, columns, scratch, stream);
  });
}

}  // namespace fastopt
