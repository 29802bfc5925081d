// Losses of single elements: their sum in the CPU's lanes, values and gradients written on the way.
#include "cuda/args.cuh"
#include "cuda/reductions.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <template <class> class F, class S>
__device__ __forceinline__ Pair<Compute<S>> loss_at(const LossArgs& args, const F<Compute<S>>& f, Index i) {
  using T = Compute<S>;
  const T x = load(static_cast<const S*>(args.x)[i]), t = load(static_cast<const S*>(args.t)[i]);
  if constexpr (requires { F<T>(T(1)); }) {
    if (args.param) return F<T>(load(static_cast<const S*>(args.param)[i]))(x, t);
  }
  return f(x, t);
}

template <template <class> class F, class S>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(LossArgs args, Params params, Index n, DeviceSum sum, Parts parts) {
  using T = Compute<S>;
  const F<T> f(params.at);
  const T scale = T(divided(args.grad_scale, divisor_at(sum)));
  double part = 0.0;
  for_lane<2>(Index(blockIdx.x) * kChunk, n, [&](Index i) {
    Pair<T> loss = loss_at<F, S>(args, f, i);
    if (args.weight) {
      const T weight = load(static_cast<const S*>(args.weight)[i]);
      loss = {loss.value * weight, loss.grad * weight};
    }
    part = Sum<double>::push(part, double(loss.value));
    if (args.value) static_cast<S*>(args.value)[i] = Store<S>::from(loss.value);
    if (args.grad) static_cast<S*>(args.grad)[i] = Store<S>::from(loss.grad * scale);
  });
  if (!sum.out) return;
  merge_blocks<Sum<double>>(merge_lanes<Sum<double>>(part), parts,
                            [&](double total) { leave<S>(sum, total); });
}

using LossKernel = void (*)(LossArgs args, Params params, Index n, DeviceSum sum, Parts parts);

template <class List, class S>
struct Table;
template <template <class> class... F, class S>
struct Table<Formulas<F...>, S> {
  static constexpr LossKernel kernels[] = {loss_kernel<F, S>...};
};

}  // namespace
}  // namespace FASTOPT_ISA

void loss_on_device(DType dtype, const LossArgs& args, Index n, const DeviceSum& sum, void* scratch,
                    CudaStream stream) {
  with_storage(dtype, [&]<class S>(S) {
    launch(Table<Losses, S>::kernels[args.formula], chunk_blocks(n), kThreads, 0, stream, args,
           copied<Losses>(args.formula, args.params), n, sum, Parts(scratch));
  });
}

}  // namespace fastopt
