// The elementwise driver: activations with their bias, their gradients, dropout, axpy.
#include "cuda/args.cuh"
#include "formulas/philox.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <template <class> class F, class S>
struct Activation {
  using T = Compute<S>;
  F<T> f;
  const S *x, *bias;
  Index columns;
  S* y;

  template <int N>
  __device__ __forceinline__ void run(Index i) const {
    Pack<S, N> pack = load_pack<N>(x + i);
    Index column = bias ? remainder(i, columns) : 0;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      T v = load(pack.at[k]);
      if (bias) {
        v = v + load(bias[column]);
        column = column + 1 == columns ? 0 : column + 1;
      }
      pack.at[k] = Store<S>::from(f.value(v));
    }
    store_pack(y + i, pack);
  }
};

template <template <class> class F, class S>
struct ActivationGrad {
  using T = Compute<S>;
  F<T> f;
  const S *dy, *x, *y;
  S* dx;

  template <int N>
  __device__ __forceinline__ void run(Index i) const {
    Pack<S, N> pack = load_pack<N>(dy + i), x_pack, y_pack;
    if constexpr (F<T>::grad_needs_x) x_pack = load_pack<N>(x + i);
    if constexpr (F<T>::grad_needs_y) y_pack = load_pack<N>(y + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      T at_x = T(0), at_y = T(0);
      if constexpr (F<T>::grad_needs_x) at_x = load(x_pack.at[k]);
      if constexpr (F<T>::grad_needs_y) at_y = load(y_pack.at[k]);
      pack.at[k] = Store<S>::from(chain(load(pack.at[k]), f.grad(at_x, at_y)));
    }
    store_pack(dx + i, pack);
  }
};

template <class S>
struct Dropout {
  using T = Compute<S>;
  DropoutArgs args;

  // A pack begins at a multiple of N, which is one of 4 or is 1.
  template <int N>
  __device__ __forceinline__ void run(Index i) const {
    Pack<S, N> pack = load_pack<N>(static_cast<const S*>(args.x) + i);
    if constexpr (N == 1) {
      keep(philox_word(args.seed, args.offset, std::uint64_t(i)), pack.at);
    } else {
#pragma unroll
      for (int k = 0; k < N; k += 4) {
        const PhiloxBlock words = philox_block(args.seed, args.offset, std::uint64_t(i + k) / 4);
#pragma unroll
        for (int l = 0; l < 4; ++l) keep(words.word[l], pack.at + k + l);
      }
    }
    store_pack(static_cast<S*>(args.y) + i, pack);
  }

 private:
  __device__ __forceinline__ void keep(std::uint32_t word, S* x) const {
    *x = Store<S>::from(drop(word, args.last_kept, load(*x), T(args.scale)));
  }
};

template <class S>
struct Axpy {
  Compute<S> a;
  const S* x;
  S* y;

  template <int N>
  __device__ __forceinline__ void run(Index i) const {
    const Pack<S, N> x_pack = load_pack<N>(x + i);
    Pack<S, N> pack = load_pack<N>(y + i);
#pragma unroll
    for (int k = 0; k < N; ++k) pack.at[k] = Store<S>::from(fma(a, load(x_pack.at[k]), load(pack.at[k])));
    store_pack(y + i, pack);
  }
};

template <template <class> class F, class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    activation_kernel(ActivationArgs args, Params params, Index n, bool fits) {
  const Activation<F, S> body{F<Compute<S>>(params.at), static_cast<const S*>(args.x),
                              static_cast<const S*>(args.bias), args.columns, static_cast<S*>(args.y)};
  run_all<kPack<S>>(fits, n, body);
}

template <template <class> class F, class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    activation_grad_kernel(ActivationGradArgs args, Params params, Index n, bool fits) {
  const ActivationGrad<F, S> body{F<Compute<S>>(params.at), static_cast<const S*>(args.dy),
                                  static_cast<const S*>(args.x), static_cast<const S*>(args.y),
                                  static_cast<S*>(args.dx)};
  run_all<kPack<S>>(fits, n, body);
}

template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    dropout_kernel(DropoutArgs args, const std::uint64_t* mask_offset, Index n, bool fits) {
  if (mask_offset) args.offset += *mask_offset;
  run_all<kPack<S>>(fits, n, Dropout<S>{args});
}

template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>) axpy_kernel(Axpy<S> body, Index n, bool fits) {
  run_all<kPack<S>>(fits, n, body);
}

using ActivationKernel = void (*)(ActivationArgs args, Params params, Index n, bool fits);
using ActivationGradKernel = void (*)(ActivationGradArgs args, Params params, Index n, bool fits);

template <class List, class S>
struct Table;
template <template <class> class... F, class S>
struct Table<Formulas<F...>, S> {
  static constexpr ActivationKernel values[] = {activation_kernel<F, S>...};
  static constexpr ActivationGradKernel grads[] = {activation_grad_kernel<F, S>...};
};

template <class S>
bool fit_packs(const void* a, const void* b, const void* c = nullptr, const void* d = nullptr) {
  bool fit = true;
  for (const void* x : {a, b, c, d}) fit = fit && fits_pack<kPack<S>>(static_cast<const S*>(x));
  return fit;
}

}  // namespace
}  // namespace FASTOPT_ISA

void activation_on_device(DType dtype, const ActivationArgs& args, Index n, CudaStream stream) {
  if (n == 0) return;
  with_storage(dtype, [&]<class S>(S) {
    const ActivationKernel kernel =
        args.formula < 0 ? activation_kernel<Identity, S> : Table<Activations, S>::values[args.formula];
    launch(kernel, blocks<S>(n), kThreads, 0, stream, args, copied<Activations>(args.formula, args.params), n,
           fit_packs<S>(args.x, args.y));
  });
}

void activation_grad_on_device(DType dtype, const ActivationGradArgs& args, Index n, CudaStream stream) {
  if (n == 0) return;
  with_storage(dtype, [&]<class S>(S) {
    launch(Table<Activations, S>::grads[args.formula], blocks<S>(n), kThreads, 0, stream, args,
           copied<Activations>(args.formula, args.params), n, fit_packs<S>(args.dy, args.x, args.y, args.dx));
  });
}

void dropout_on_device(DType dtype, const DropoutArgs& args, Index n, const std::uint64_t* mask_offset,
                       CudaStream stream) {
  if (n == 0) return;
  with_storage(dtype, [&]<class S>(S) {
    launch(dropout_kernel<S>, blocks<S>(n), kThreads, 0, stream, args, mask_offset, n,
           fit_packs<S>(args.x, args.y));
  });
}

void axpy_on_device(DType dtype, double a, const void* x, void* y, Index n, CudaStream stream) {
  if (n == 0) return;
  with_storage(dtype, [&]<class S>(S) {
    const Axpy<S> body{Compute<S>(a), static_cast<const S*>(x), static_cast<S*>(y)};
    launch(axpy_kernel<S>, blocks<S>(n), kThreads, 0, stream, body, n, fit_packs<S>(x, y));
  });
}

}  // namespace fastopt
