// Cross-entropy and its gradient in one read and one write of rows that fit in registers, of a warp, a block
// or a cluster of blocks; of logits or of log-probabilities; and what its mean divides by.
#include "cuda/cluster.cuh"
#include "formulas/target.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// What all rows of a launch leave behind: their values' sum, each team's in its first thread.
template <class S>
__device__ void leave_sum(const DeviceSum& sum, const Parts& parts, double total) {
  if (!sum.out) return;
  total = merge_block(total, [](double a, double b) { return a + b; });
  leave_blocks<S>(total, parts, sum);
}

// The spread part of q for the classes of a tile; 0 for what lies outside the row. What is not there is taken
// as 0 or 1, which changes no bit: one loop serves every kind of target.
template <class S, int K>
__device__ __forceinline__ void fill_spread(const Deal<S, K>& deal, const Target<S>& target, int tile,
                                            Compute<S> (&q)[K]) {
  using T = Compute<S>;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int column = deal.column(tile, k);
    const bool inside = deal.inside(column);
    const T probability = inside && target.probabilities ? load(target.probabilities[column]) : T(0);
    const T weight = inside && target.weight ? load(target.weight[column]) : T(1);
    q[k] = select(inside, target.smoothed(probability) * weight, T(0));
  }
}

template <class S, bool Spread>
struct CrossEntropy {
  using T = Compute<S>;
  CrossEntropyArgs args;
  DeviceSum sum;
  Parts parts;

  template <int K, class Threads>
  __device__ void run(const Threads& team, Index rows) const {
    const T scale = T(args.grad_scale / divisor_at(sum));
    double total = 0.0;
    for_rows(team, rows, [&](Index row, bool live) {
      const double value = row_loss<K>(team, row, live ? args.columns : 0, scale);
      if (!live || team.lane != 0) return;
      total += value;
      if (args.value) static_cast<S*>(args.value)[row] = Store<S>::from(T(value));
    });
    leave_sum<S>(sum, parts, total);
  }

 private:
  // A tile's part of sum(q) and of sum(q (x - shift)), of the spread part of q.
  template <int K>
  __device__ __forceinline__ static void add_spread(const Deal<S, K>& deal, const Target<S>& target, int tile,
                                                    const T (&x)[K], T shift, double& mass, double& dot) {
    if (target.ignored) return;
    T q[K];
    fill_spread(deal, target, tile, q);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      mass = Sum<double>::push(mass, double(q[k]));
      dot = Dot<double>::push(dot, double(q[k]), double(centred(q[k], x[k], shift)));
    }
  }

  template <int K, class Threads>
  __device__ __forceinline__ double row_loss(const Threads& team, Index row, Index columns, T scale) const {
    const S* x = static_cast<const S*>(args.x) + row * args.columns;
    S* grad = args.grad ? static_cast<S*>(args.grad) + row * args.columns : nullptr;
    const Deal<S, K> deal(team, columns, x, alike<S>(x, grad));
    const Target<S> target(args, row);
    // Before the gradient, which may overwrite the logits: a merge lies in between.
    const T at_label = target.label >= 0 ? load(x[target.label]) : T(0);
    T at[K] = {};
    double mass = 0.0, dot = 0.0;
    const OnlineSoftmax<T> softmax = normalizer<true>(
        team, deal, x, at,
        [&](int tile, const T(&x_at)[K], T shift) {
          if constexpr (Spread) add_spread(deal, target, tile, x_at, shift, mass, dot);
        },
        [&](double by) {
          if (Spread && by > 0.0) dot -= mass * by;
        });
    if constexpr (Spread) {
      mass = team_sum(team, mass);
      dot = team_sum(team, dot);
    }
    mass += double(target.on_label);
    dot += double(target.on_label) * double(at_label - softmax.top);
    if (grad) write_grad(deal, target, softmax, x, scale, scale * T(mass) / softmax.sum, at, grad);
    return target.loss(mass, dot, log(softmax.sum));
  }

  template <int K>
  __device__ __forceinline__ void write_grad(const Deal<S, K>& deal, const Target<S>& target,
                                             const OnlineSoftmax<T>& softmax, const S* x, T scale, T factor,
                                             T (&at)[K], S* grad) const {
    const int label = int(target.label);
    for (int tile = deal.tiles - 1; tile >= 0; --tile) {
      if (tile < deal.tiles - 1) deal.read(x, tile, Max<T>::identity, at);
      [[maybe_unused]] T q[K];
      if constexpr (Spread) fill_spread(deal, target, tile, q);
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int column = deal.column(tile, k);
        T g = (deal.tiles > 1 ? exp_term(at[k] - softmax.shift()) : at[k]) * factor;
        if (column == label) g = target.without_label(scale, g);
        if constexpr (Spread) g = target.without_spread(scale, q[k], g);
        at[k] = target.ignored ? T(0) : g;
      }
      deal.write(grad, tile, at);
    }
  }
};

// Of log-probabilities that are given.
template <class S>
struct Nll {
  using T = Compute<S>;
  CrossEntropyArgs args;
  DeviceSum sum;
  Parts parts;

  template <int K>
  __device__ void run(const Team& team, Index rows) const {
    const T scale = T(args.grad_scale / divisor_at(sum));
    double total = 0.0;
    for_rows(team, rows, [&](Index row, bool live) {
      const Target<S> target(args, row);
      const S* x = static_cast<const S*>(args.x) + row * args.columns;
      if (live && team.lane == 0) {
        const T at_label = target.label >= 0 ? load(x[target.label]) : T(0);
        const double value = target.ignored ? 0.0 : -double(target.on_label) * double(at_label);
        total += value;
        if (args.value) static_cast<S*>(args.value)[row] = Store<S>::from(T(value));
      }
      if (!args.grad) return;
      team_sum(team, 0.0);  // the gradient may overwrite the logit that the first thread has read
      S* grad = static_cast<S*>(args.grad) + row * args.columns;
      const T missing = target.label >= 0 || target.ignored ? T(0) : target.on_label;
      for (Index c = team.lane; live && c < args.columns; c += team.size)
        grad[c] = Store<S>::from(c == target.label ? target.without_label(scale, T(0)) : missing);
    });
    leave_sum<S>(sum, parts, total);
  }
};

// Whether a class that is weighed as one of the targets is there to be weighed.
template <class S>
__global__ void __launch_bounds__(kThreads)
    class_divisor_kernel(CrossEntropyArgs args, Index rows, Parts parts, double* divisor) {
  const S* weight = static_cast<const S*>(args.weight);
  double part = 0.0;
  for_lane(Index(blockIdx.x) * kChunk, rows, [&](Index i) {
    const Index label = args.target[i];
    if (label == args.ignore_index) return;
    const bool possible = label >= 0 && label < args.columns;
    part += !weight ? 1.0 : possible ? double(load(weight[label])) : 0.0;
  });
  merge_blocks<Sum<double>>(merge_lanes<Sum<double>>(part), parts, [&](double total) { *divisor = total; });
}

__global__ void put_kernel(double value, double* to) { *to = value; }

}  // namespace
}  // namespace FASTOPT_ISA

void cross_entropy_on_device(DType dtype, const CrossEntropyArgs& args, bool log_probabilities, Index rows,
                             const DeviceSum& sum, void* scratch, CudaStream stream) {
  const bool spread = args.probabilities || args.label_smoothing != 0.0;
  with_storage(dtype, [&]<class S>(S) {
    const Parts parts(scratch);
    if (log_probabilities) return launch_warps<1>(Nll<S>{args, sum, parts}, rows, args.columns, stream);
    // Where q is spread, what belongs to it needs registers too.
    if (spread)
      return launch_rows_on_clusters<S, sizeof(S) == 8 ? 8 : 16>(CrossEntropy<S, true>{args, sum, parts},
                                                                 rows, args.columns, stream);
    launch_rows_on_clusters<S>(CrossEntropy<S, false>{args, sum, parts}, rows, args.columns, stream);
  });
}

void class_divisor_on_device(DType dtype, const CrossEntropyArgs& args, Index rows, double* divisor,
                             void* scratch, CudaStream stream) {
  if (args.probabilities) return launch(put_kernel, 1, 1, 0, stream, double(rows), divisor);
  with_storage(dtype, [&]<class S>(S) {
    launch(class_divisor_kernel<S>, chunk_blocks(rows), kThreads, 0, stream, args, rows, Parts(scratch),
           divisor);
  });
}

}  // namespace fastopt
