// The rows driver: softmax, log-softmax and their gradients, in one read and one write of rows that fit in
// registers.
#include "cuda/rows.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <class S, bool Log>
struct Softmax {
  using T = Compute<S>;
  SoftmaxArgs args;

  template <int K>
  __device__ void run(const Team& team, Index rows) const {
    for_rows(team, rows, [&](Index row, bool live) {
      const S* x = static_cast<const S*>(args.x) + row * args.columns;
      S* y = static_cast<S*>(args.y) + row * args.columns;
      const Deal<S, K> deal(team, live ? args.columns : 0, x, alike<S>(x, y));
      T at[K] = {};
      const OnlineSoftmax<T> softmax =
          normalizer<!Log>(team, deal, x, at, [](int, const T(&)[K], T) {}, [](double) {});
      const T factor = T(1) / softmax.sum, log_sum = log(softmax.sum);
      for (int tile = deal.tiles - 1; tile >= 0; --tile) {
        if (tile < deal.tiles - 1) deal.read(x, tile, Max<T>::identity, at);
#pragma unroll
        for (int k = 0; k < K; ++k) {
          if constexpr (Log) {
            at[k] = at[k] - softmax.top - log_sum;
          } else {
            at[k] = (deal.tiles > 1 ? exp_term(at[k] - softmax.shift()) : at[k]) * factor;
          }
        }
        deal.write(y, tile, at);
      }
    });
  }
};

// The sum over a row that the gradient subtracts: of dy y, or of dy, in double as on the CPU.
template <class S, bool Log>
struct SoftmaxGrad {
  using T = Compute<S>;
  SoftmaxGradArgs args;

  template <int K>
  __device__ void run(const Team& team, Index rows) const {
    for_rows(team, rows, [&](Index row, bool live) {
      const S* dy = static_cast<const S*>(args.dy) + row * args.columns;
      const S* y = static_cast<const S*>(args.y) + row * args.columns;
      S* dx = static_cast<S*>(args.dx) + row * args.columns;
      const Deal<S, K> deal(team, live ? args.columns : 0, dy, alike<S>(dy, y) && alike<S>(dy, dx));
      T dy_at[K] = {}, y_at[K] = {};
      double sum = 0.0;
      for (int tile = 0; tile < deal.tiles; ++tile) {
        deal.read(dy, tile, T(0), dy_at);
        deal.read(y, tile, T(0), y_at);
#pragma unroll
        for (int k = 0; k < K; ++k)
          sum = Log ? Sum<double>::push(sum, double(dy_at[k]))
                    : Dot<double>::push(sum, double(dy_at[k]), double(y_at[k]));
      }
      const T total = T(team_sum(team, sum));
      for (int tile = deal.tiles - 1; tile >= 0; --tile) {
        if (tile < deal.tiles - 1) {
          deal.read(dy, tile, T(0), dy_at);
          deal.read(y, tile, T(0), y_at);
        }
#pragma unroll
        for (int k = 0; k < K; ++k)
          dy_at[k] = Log ? fma(-exp(y_at[k]), total, dy_at[k]) : y_at[k] * (dy_at[k] - total);
        deal.write(dx, tile, dy_at);
      }
    });
  }
};

}  // namespace
}  // namespace FASTOPT_ISA

void softmax_on_device(DType dtype, const SoftmaxArgs& args, bool log, Index rows, CudaStream stream) {
  if (rows == 0) return;
  with_storage(dtype, [&]<class S>(S) {
    if (log) return launch_rows<S>(Softmax<S, true>{args}, rows, args.columns, stream);
    launch_rows<S>(Softmax<S, false>{args}, rows, args.columns, stream);
  });
}

void softmax_grad_on_device(DType dtype, const SoftmaxGradArgs& args, bool log, Index rows,
                            CudaStream stream) {
  if (rows == 0) return;
  with_storage(dtype, [&]<class S>(S) {
    if (log) return launch_rows<S>(SoftmaxGrad<S, true>{args}, rows, args.columns, stream);
    launch_rows<S>(SoftmaxGrad<S, false>{args}, rows, args.columns, stream);
  });
}

}  // namespace fastopt
