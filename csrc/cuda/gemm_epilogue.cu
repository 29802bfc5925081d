// The epilogue of a product as a kernel of its own: bias, activation, dropout, activation gradient and
// residual in one pass over C.
#include "cuda/gemm_epilogue.hpp"

#include "cuda/elements.cuh"
#include "formulas/philox.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// C is m x n with rows c_row apart; the other m x n arrays are dense.
template <class S>
struct FinishArgs {
  const S* from;  // null: C
  S* c;
  Index c_row, n, size;
  const S* bias;
  S *kept_input, *kept_output;
  bool dropout;
  std::uint64_t seed, offset;
  const std::uint64_t* mask_offset;
  std::uint32_t last_kept;
  double kept_scale;
  const S *x, *y;
  const S* residual;
  double residual_scale;
  bool fits;  // packs may be read from all of them

  __device__ __forceinline__ S* at(Index i) const { return c + (c_row == n ? i : i / n * c_row + i % n); }
};

// N elements in registers.
template <class S, int N>
struct Values {
  Compute<S> at[N];

  __device__ __forceinline__ explicit Values(const S* from) {
    const Pack<S, N> pack = load_pack<N>(from);
#pragma unroll
    for (int k = 0; k < N; ++k) at[k] = load(pack.at[k]);
  }
  __device__ __forceinline__ void store(S* to) const {
    Pack<S, N> pack;
#pragma unroll
    for (int k = 0; k < N; ++k) pack.at[k] = Store<S>::from(at[k]);
    store_pack(to, pack);
  }
};

template <class S, int N>
__device__ __forceinline__ void add_bias(Values<S, N>& v, const S* bias, Index i, Index n) {
  Index column = remainder(i, n);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    v.at[k] = v.at[k] + load(bias[column]);
    column = column + 1 == n ? 0 : column + 1;
  }
}

// A pack begins at a multiple of N, which is one of 4 or is 1.
template <class S, int N>
__device__ __forceinline__ void drop_some(Values<S, N>& v, const FinishArgs<S>& args, Index i) {
  using T = Compute<S>;
  const T scale = T(args.kept_scale);
  const std::uint64_t offset = args.offset + (args.mask_offset ? *args.mask_offset : 0);
  if constexpr (N == 1) {
    const std::uint32_t word = philox_word(args.seed, offset, std::uint64_t(i));
    v.at[0] = drop(word, args.last_kept, v.at[0], scale);
  } else {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      const PhiloxBlock words = philox_block(args.seed, offset, std::uint64_t(i + k) / 4);
#pragma unroll
      for (int l = 0; l < 4; ++l) v.at[k + l] = drop(words.word[l], args.last_kept, v.at[k + l], scale);
    }
  }
}

// F is an activation, or the formula whose gradient is taken.
template <class F, bool Grad, class S>
struct Finish {
  using T = Compute<S>;
  F f;
  const FinishArgs<S>& args;

  template <int N>
  __device__ __forceinline__ void run(Index i) const {
    Values<S, N> v(args.from ? args.from + i : args.at(i));
    if (args.bias) add_bias(v, args.bias, i, args.n);
    if (args.kept_input) v.store(args.kept_input + i);
    if constexpr (!Grad) {
#pragma unroll
      for (int k = 0; k < N; ++k) v.at[k] = f.value(v.at[k]);
    }
    if (args.kept_output) v.store(args.kept_output + i);
    if (args.dropout) drop_some(v, args, i);
    if constexpr (Grad) {
      const Values<S, N> in((F::grad_needs_x ? args.x : args.y) + i);
#pragma unroll
      for (int k = 0; k < N; ++k) v.at[k] = chain(v.at[k], f.grad(in.at[k], in.at[k]));
    }
    if (args.residual) {
      const Values<S, N> residual(args.residual + i);
#pragma unroll
      for (int k = 0; k < N; ++k) v.at[k] = fma(T(args.residual_scale), v.at[k], residual.at[k]);
    }
    v.store(args.at(i));
  }
};

template <class F, bool Grad, class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>) finish_kernel(F f, FinishArgs<S> args) {
  const Finish<F, Grad, S> body{f, args};
  run_all<kPack<S>>(args.fits, args.size, body);
}

template <class F, bool Grad, class S>
void launch_finish(const double* params, const FinishArgs<S>& args, CudaStream stream) {
  launch(finish_kernel<F, Grad, S>, blocks<S>(args.size), kThreads, 0, stream, F(params), args);
}

template <class S>
using Launcher = void (*)(const double* params, const FinishArgs<S>& args, CudaStream stream);

template <class List, class S>
struct Table;
template <template <class> class... F, class S>
struct Table<Formulas<F...>, S> {
  static constexpr Launcher<S> values[] = {launch_finish<F<Compute<S>>, false, S>...};
  static constexpr Launcher<S> grads[] = {launch_finish<F<Compute<S>>, true, S>...};
};

template <class S>
bool fit_packs(const FinishArgs<S>& args) {
  bool fit = args.c_row == args.n;
  for (const S* x : {static_cast<const S*>(args.c), static_cast<const S*>(args.kept_input),
                     static_cast<const S*>(args.kept_output), args.from, args.x, args.y, args.residual})
    fit = fit && fits_pack<kPack<S>>(x);
  return fit;
}

template <class S>
FinishArgs<S> finish_args(const DeviceGemm& args, const void* from) {
  const Epilogue& e = args.epilogue;
  const auto in = [](const void* x) { return static_cast<const S*>(x); };
  const auto out = [](void* x) { return static_cast<S*>(x); };
  FinishArgs<S> own{in(from),   out(args.c),       args.c_row,         args.n,       args.m * args.n,
                    in(e.bias), out(e.kept_input), out(e.kept_output), e.dropout,    e.seed,
                    e.offset,   args.mask_offset,  e.last_kept,        e.kept_scale, in(e.x),
                    in(e.y),    in(e.residual),    e.residual_scale,   false};
  own.fits = fit_packs(own);
  return own;
}

template <class S>
void finish(const DeviceGemm& args, const void* from, CudaStream stream) {
  using Launchers = Table<Activations, S>;
  const Epilogue& e = args.epilogue;
  FinishArgs<S> own = finish_args<S>(args, from);
  if (e.activation < 0 && e.gradient >= 0) return Launchers::grads[e.gradient](e.params, own, stream);
  if (e.gradient >= 0) own.residual = nullptr;  // comes after the gradient
  const Launcher<S> value =
      e.activation < 0 ? launch_finish<Identity<Compute<S>>, false, S> : Launchers::values[e.activation];
  value(e.params, own, stream);
  if (e.gradient < 0) return;
  DeviceGemm rest = args;
  rest.epilogue.bias = nullptr;
  rest.epilogue.kept_input = rest.epilogue.kept_output = nullptr;
  rest.epilogue.dropout = false;
  Launchers::grads[e.gradient](e.params, finish_args<S>(rest, nullptr), stream);
}

template <class S>
__global__ void __launch_bounds__(kThreads) scale_kernel(FinishArgs<S> args, double beta) {
  using T = Compute<S>;
  for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < args.size;
       i += Index(gridDim.x) * blockDim.x) {
    S* c = args.at(i);
    *c = Store<S>::from(beta == 0.0 ? T(0) : T(beta) * load(*c));
  }
}

template <class S>
struct Round {
  const float* from;
  Index rows, ld;
  S* to;
  Index to_ld;

  template <int N>
  __device__ __forceinline__ void run(Index i) const {
    const Index row = remainder(i, rows), column = (i - row) / rows;
    const Pack<float, N> wide = load_pack<N>(from + column * ld + row);
    Pack<S, N> narrow;
#pragma unroll
    for (int k = 0; k < N; ++k) narrow.at[k] = Store<S>::from(wide.at[k]);
    store_pack(to + column * to_ld + row, narrow);
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads) round_kernel(Round<S> body, Index size, bool fits) {
  run_all<kPack<S>>(fits, size, body);
}

template <class S>
void round_factor(const Round<S>& body, Index columns, CudaStream stream) {
  // A pack may not reach over the end of a column.
  const bool fits = fits_pack<kPack<S>>(body.from) && body.rows % kPack<S> == 0 && body.ld % 4 == 0;
  launch(round_kernel<S>, blocks<S>(body.rows * columns), kThreads, 0, stream, body, body.rows * columns,
         fits);
}

}  // namespace
}  // namespace FASTOPT_ISA

void finish_on_device(DType dtype, const DeviceGemm& args, CudaStream stream, const void* from) {
  with_storage(dtype, [&]<class S>(S) { finish<S>(args, from, stream); });
}

void scale_on_device(DType dtype, const DeviceGemm& args, CudaStream stream) {
  with_storage(dtype, [&]<class S>(S) {
    const FinishArgs<S> own = finish_args<S>(args, nullptr);
    launch(scale_kernel<S>, blocks<S>(own.size), kThreads, 0, stream, own, args.beta);
  });
}

void round_factor_on_device(DType to_dtype, const void* from, Index rows, Index columns, Index ld, void* to,
                            Index to_ld, CudaStream stream) {
  const float* const wide = static_cast<const float*>(from);
  if (to_dtype == DType::bf16)
    return round_factor(Round<Bf16>{wide, rows, ld, static_cast<Bf16*>(to), to_ld}, columns, stream);
  round_factor(Round<F16>{wide, rows, ld, static_cast<F16*>(to), to_ld}, columns, stream);
}

}  // namespace fastopt
