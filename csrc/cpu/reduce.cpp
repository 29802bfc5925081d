// The reduce driver: sums and norms of arrays, sums of columns, and losses, which are a sum with a gradient
// written on the way. A call handles one chunk; the caller merges chunks in chunk order, in double.
#include "core/dispatch.hpp"
#include "cpu/lanes.hpp"
#include "cpu/stream.hpp"
#include "cpu/table.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <template <class> class M, class S>
double reduce(const void* x, Index n) {
  Lanes<M> lanes;
  lanes.push_all(n, static_cast<const S*>(x));
  return lanes.value();
}

template <template <class> class M>
constexpr ReduceKernels reduce_kernels() {
  return {{reduce<M, float>, reduce<M, double>, reduce<M, Bf16>, reduce<M, F16>}};
}
// In the order of Monoid.
constexpr ReduceKernels kReduce[] = {reduce_kernels<Sum>(), reduce_kernels<AbsSum>(),
                                     reduce_kernels<SumSquares>(), reduce_kernels<AbsMax>()};

template <class T>
double dot(const void* x, const void* y, Index n) {
  Lanes<Dot> lanes;
  lanes.push_all(n, static_cast<const T*>(x), static_cast<const T*>(y));
  return lanes.value();
}

template <class T>
FO_HD void add_to(double* sums, const T* x, Index n) {
  FO_INDEPENDENT
  for (Index j = 0; j < n; ++j) sums[j] += double(x[j]);
}

// Rows of few columns are taken several at a time, so that the inner loop stays long.
constexpr Index kWide = 256;

template <class T>
void column_sums(const ColumnSumArgs& args, Index begin_row, Index end_row) {
  const T* x = static_cast<const T*>(args.x);
  const Index columns = args.columns, width = args.last - args.first;
  double* sums = args.sums + args.first;
  for (Index j = 0; j < width; ++j) sums[j] = 0.0;
  Index row = begin_row;
  if (width == columns && columns <= kWide / 2) {
    const Index together = kWide / columns;
    double wide[kWide] = {};
    for (; row + together <= end_row; row += together) add_to(wide, x + row * columns, together * columns);
    for (Index r = 0; r < together; ++r) add_to(sums, wide + r * columns, columns);
  }
  for (; row < end_row; ++row) add_to(sums, x + row * columns + args.first, width);
}

template <class T>
using Evaluate = void (*)(const LossArgs& args, Index at, Index n, T* value, T* grad);

template <template <class> class F, class T>
void evaluate(const LossArgs& args, Index at, Index n, T* value, T* grad) {
  const T* x = static_cast<const T*>(args.x) + at;
  const T* t = static_cast<const T*>(args.t) + at;
  if constexpr (requires { F<T>(T(1)); }) {
    if (args.param) {
      const T* param = static_cast<const T*>(args.param) + at;
      FO_INDEPENDENT
      for (Index i = 0; i < n; ++i) {
        const Pair<T> loss = F<T>(param[i])(x[i], t[i]);
        value[i] = loss.value;
        grad[i] = loss.grad;
      }
      return;
    }
  }
  const F<T> f(args.params);
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) {
    const Pair<T> loss = f(x[i], t[i]);
    value[i] = loss.value;
    grad[i] = loss.grad;
  }
}

template <class List, class T>
struct LossTable;
template <template <class> class... F, class T>
struct LossTable<Formulas<F...>, T> {
  static constexpr Evaluate<T> rows[] = {evaluate<F, T>...};
};

template <class T>
FO_HD void multiply(const T* x, const T* factor, T* y, Index n) {
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) y[i] = x[i] * factor[i];
}

template <class T>
FO_HD void multiply(const T* x, T factor, T* y, Index n) {
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) y[i] = x[i] * factor;
}

template <class T>
FO_HD void deliver(const T* block, T* out, Index n, bool stream) {
  if (stream) {
    stream_copy(block, out, n);
  } else {
    __builtin_memcpy(out, block, std::size_t(n) * sizeof(T));
  }
}

template <class T>
double loss(const LossArgs& args, Index begin, Index end) {
  const Evaluate<T> evaluate_formula = LossTable<Losses, T>::rows[args.formula];
  const T* weight = static_cast<const T*>(args.weight);
  Lanes<Sum> lanes;
  for (Index at = begin; at < end; at += kLaneBlock) {
    const Index n = end - at < kLaneBlock ? end - at : kLaneBlock;
    alignas(64) T value[kLaneBlock], grad[kLaneBlock];
    evaluate_formula(args, at, n, value, grad);
    if (weight) {
      multiply(value, weight + at, value, n);
      multiply(grad, weight + at, grad, n);
    }
    lanes.push(n, value);
    if (args.value) deliver(value, static_cast<T*>(args.value) + at, n, args.stream);
    if (args.grad) {
      multiply(grad, T(args.grad_scale), grad, n);
      deliver(grad, static_cast<T*>(args.grad) + at, n, args.stream);
    }
  }
  if (args.stream) stream_end();
  return lanes.value();
}

constexpr SumKernels kSums[] = {{loss<float>, dot<float>, column_sums<float>},
                                {loss<double>, dot<double>, column_sums<double>}};

}  // namespace

const ReduceKernels* reduce_table() { return kReduce; }
const SumKernels* sum_table() { return kSums; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
