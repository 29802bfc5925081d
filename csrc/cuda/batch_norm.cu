// The batch norm driver: statistics of columns and the sums of their gradients, then one pass over the
// numbers. That pass has the CPU's bits where the statistics have.
#include "cuda/columns.cuh"
#include "cuda/elements.cuh"
#include "formulas/batch_norm.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// A thread's moments are of differences from the first number that it sees.
template <class T>
struct ColumnMoments {
  using Part = Moments;
  const T* x;
  double eps;
  T *mean, *rstd, *var;

  __device__ Part over(const ColumnTiles& cut, Index column, Index first, Index last, Index step) const {
    if (first >= last) return {};
    const double shift = double(x[first * cut.columns + column]);
    double n = 0.0, sum = 0.0, squares = 0.0;
    for (Index row = first; row < last; row += step) {
      const double d = double(x[row * cut.columns + column]) - shift;
      n += 1.0;
      sum += d;
      squares = fma(d, d, squares);
    }
    return Moments::of(n, shift, sum, squares);
  }
  __device__ static Part merge(const Part& a, const Part& b) { return Moments::merge(a, b); }
  __device__ void leave(Index column, const Part& all) const {
    const BatchStatistics kept(all, eps);
    mean[column] = T(kept.mean);
    rstd[column] = T(kept.rstd);
    var[column] = T(kept.var);
  }
};

template <class T>
struct ColumnGradSums {
  using Part = GradSums;
  const T *dy, *x, *mean, *rstd;
  Index rows;
  T *dweight, *dbias, *center, *slope;  // null: not wanted

  __device__ Part over(const ColumnTiles& cut, Index column, Index first, Index last, Index step) const {
    const double at = double(mean[column]);
    Part part{};
    for (Index row = first; row < last; row += step) {
      const Index i = row * cut.columns + column;
      const double g = double(dy[i]);
      part.dy += g;
      part.dot = fma(g, double(x[i]) - at, part.dot);
    }
    return part;
  }
  __device__ static Part merge(const Part& a, const Part& b) { return GradSums::merge(a, b); }
  __device__ void leave(Index column, const Part& all) const {
    const GradTerms terms(all, double(rows), double(rstd[column]));
    put(dweight, column, terms.dweight);
    put(dbias, column, terms.dbias);
    put(center, column, terms.center);
    put(slope, column, terms.slope);
  }
  __device__ static void put(T* out, Index column, double value) {
    if (out) out[column] = T(value);
  }
};

template <class T>
struct Channel {
  const T *mean, *rstd, *weight;

  __device__ __forceinline__ T at(Index c) const { return mean ? mean[c] : T(0); }
  __device__ __forceinline__ T scale(Index c) const { return weight ? rstd[c] * weight[c] : rstd[c]; }
};

__device__ __forceinline__ Index next(Index column, Index columns) {
  return column + 1 == columns ? 0 : column + 1;
}

template <class T>
struct NormalizeAll {
  const T* x;
  Index columns;
  Channel<T> channel;
  const T* bias;
  T* y;

  template <int N>
  __device__ __forceinline__ void run(Index i) const {
    Pack<T, N> pack = load_pack<N>(x + i);
    Index c = remainder(i, columns);
#pragma unroll
    for (int k = 0; k < N; ++k, c = next(c, columns))
      pack.at[k] = normalized(pack.at[k], channel.at(c), channel.scale(c), bias ? bias[c] : T(0));
    store_pack(y + i, pack);
  }
};

template <class T>
struct NormalizeGradAll {
  const T *dy, *x;
  Index columns;
  Channel<T> channel;
  const T *center, *slope;
  T* dx;

  template <int N>
  __device__ __forceinline__ void run(Index i) const {
    Pack<T, N> pack = load_pack<N>(dy + i);
    const Pack<T, N> in = load_pack<N>(x + i);
    Index c = remainder(i, columns);
#pragma unroll
    for (int k = 0; k < N; ++k, c = next(c, columns))
      pack.at[k] =
          normalized_grad(pack.at[k], in.at[k], channel.at(c), center[c], slope[c], channel.scale(c));
    store_pack(dx + i, pack);
  }
};

template <class Body, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) pass_kernel(Body body, Index n, bool fits) {
  run_all<kPack<T>>(fits, n, body);
}

// A thread a channel; a run that has stopped tracks nothing.
template <class T>
__global__ void track_kernel(const T* mean, const T* var, Index columns, double momentum, Index* batches,
                             const std::int32_t* stopped, T* running_mean, T* running_var) {
  if (stopped && *stopped) return;
  // One block, so that all have read the count before it is changed.
  const double share = batch_share(momentum, batches ? double(*batches + 1) : 1.0);
  __syncthreads();
  for (Index c = threadIdx.x; c < columns; c += kThreads) {
    running_mean[c] = tracked(running_mean[c], mean[c], share);
    running_var[c] = tracked(running_var[c], var[c], share);
  }
  if (batches && threadIdx.x == 0) *batches += 1;
}

template <class T>
__global__ void running_rstd_kernel(const T* var, Index columns, double eps, T* rstd) {
  const Index c = Index(blockIdx.x) * kThreads + threadIdx.x;
  if (c < columns) rstd[c] = T(reciprocal_std(double(var[c]), eps));
}

// f(T()) for the type of the arrays, which is one that is computed in.
template <class F>
void with_type(DType dtype, const F& f) {
  dtype == DType::f32 ? f(float()) : f(double());
}

template <class T>
T* as(const void* data) {
  return static_cast<T*>(const_cast<void*>(data));
}

}  // namespace
}  // namespace FASTOPT_ISA

Index batch_norm_scratch_bytes(Index rows, Index columns) {
  return fold_scratch_bytes(rows, columns, sizeof(Moments));
}

void batch_statistics_on_device(DType dtype, const void* x, Index rows, Index columns, double eps,
                                const BatchSaved& saved, void* scratch, CudaStream stream) {
  with_type(dtype, [&]<class T>(T) {
    const ColumnMoments<T> fold{as<T>(x), eps, as<T>(saved.mean), as<T>(saved.rstd), as<T>(saved.var)};
    fold_columns(fold, rows, columns, scratch, stream);
  });
}

void running_rstd_on_device(DType dtype, const void* running_var, Index columns, double eps, void* rstd,
                            CudaStream stream) {
  if (columns == 0) return;
  with_type(dtype, [&]<class T>(T) {
    launch(running_rstd_kernel<T>, (columns + kThreads - 1) / kThreads, kThreads, 0, stream,
           as<const T>(running_var), columns, eps, as<T>(rstd));
  });
}

void track_on_device(DType dtype, const BatchSaved& saved, Index columns, double momentum, Index* batches,
                     const std::int32_t* stopped, void* running_mean, void* running_var, CudaStream stream) {
  with_type(dtype, [&]<class T>(T) {
    launch(track_kernel<T>, 1, kThreads, 0, stream, as<const T>(saved.mean), as<const T>(saved.var), columns,
           momentum, batches, stopped, as<T>(running_mean), as<T>(running_var));
  });
}

void normalize_on_device(DType dtype, const BatchNormArgs& args, Index rows, CudaStream stream) {
  const Index n = rows * args.columns;
  if (n == 0) return;
  with_type(dtype, [&]<class T>(T) {
    const NormalizeAll<T> body{as<T>(args.x),
                               args.columns,
                               {as<T>(args.mean), as<T>(args.rstd), as<T>(args.weight)},
                               as<T>(args.bias),
                               as<T>(args.y)};
    const bool fits = fits_pack<kPack<T>>(body.x) && fits_pack<kPack<T>>(body.y);
    launch(pass_kernel<NormalizeAll<T>, T>, blocks<T>(n), kThreads, 0, stream, body, n, fits);
  });
}

void batch_norm_sums_on_device(DType dtype, const void* dy, const void* x, Index rows, Index columns,
                               const BatchSaved& saved, const BatchGradients& gradients, void* scratch,
                               CudaStream stream) {
  with_type(dtype, [&]<class T>(T) {
    const ColumnGradSums<T> fold{as<T>(dy),
                                 as<T>(x),
                                 as<T>(saved.mean),
                                 as<T>(saved.rstd),
                                 rows,
                                 as<T>(gradients.weight),
                                 as<T>(gradients.bias),
                                 as<T>(gradients.center),
                                 as<T>(gradients.slope)};
    fold_columns(fold, rows, columns, scratch, stream);
  });
}

void normalize_grad_on_device(DType dtype, const BatchNormGradArgs& args, Index rows, CudaStream stream) {
  const Index n = rows * args.columns;
  if (n == 0) return;
  with_type(dtype, [&]<class T>(T) {
    const NormalizeGradAll<T> body{
        as<T>(args.dy),     as<T>(args.x),
        args.columns,       {as<T>(args.mean), as<T>(args.rstd), as<T>(args.weight)},
        as<T>(args.center), as<T>(args.slope),
        as<T>(args.dx)};
    const bool fits =
        fits_pack<kPack<T>>(body.dy) && fits_pack<kPack<T>>(body.x) && fits_pack<kPack<T>>(body.dx);
    launch(pass_kernel<NormalizeGradAll<T>, T>, blocks<T>(n), kThreads, 0, stream, body, n, fits);
  });
}

}  // namespace fastopt
