// The elementwise driver: activations with their bias, gradients, dropout, axpy. Blocks of narrower storage
// are staged as float, so that a formula's loop exists for float and double only.
#include "core/dispatch.hpp"
#include "cpu/apply.hpp"
#include "cpu/loops.hpp"
#include "cpu/table.hpp"
#include "formulas/philox.hpp"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <class T, class F>
void map(const void* x_, void* y_, Index n, F f) {
  const T* x = static_cast<const T*>(x_);
  T* y = static_cast<T*>(y_);
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) y[i] = f(x[i]);
}

// The functions of math.hpp one by one, in the order of kMathNames (bindings), for the accuracy tests.
#define FO_MATH(function)                                                                                \
  {                                                                                                      \
    {                                                                                                    \
      [](const void* x, void* y, Index n) { map<float>(x, y, n, [](float v) { return function(v); }); }, \
          [](const void* x, void* y, Index n) {                                                          \
            map<double>(x, y, n, [](double v) { return function(v); });                                  \
          }                                                                                              \
    }                                                                                                    \
  }
constexpr MathKernels kMath[] = {
    FO_MATH(exp),     FO_MATH(exp_nonpositive), FO_MATH(exp_term), FO_MATH(expm1),
    FO_MATH(log),     FO_MATH(log1p),           FO_MATH(tanh),     FO_MATH(erf),
    FO_MATH(sigmoid), FO_MATH(normal_cdf),      FO_MATH(sqrt),
};
#undef FO_MATH

constexpr Index kBlock = 1024;   // elements staged at a time
constexpr Index kShortRow = 64;  // a bias of fewer columns is repeated, so that loops stay long
constexpr Index kRepeated = 256;

Index at_most(Index n, Index limit) { return n < limit ? n : limit; }

template <class S>
using Buffer = Compute<S>[kBlock];

// n elements as the type that formulas compute in: the array itself, or converted into the buffer.
template <class S>
FO_HD const Compute<S>* stage(const S* x, Compute<S>* buffer, Index n) {
  if constexpr (__is_same(S, Compute<S>)) {
    return x;
  } else {
    FO_INDEPENDENT
    for (Index i = 0; i < n; ++i) buffer[i] = load(x[i]);
    return buffer;
  }
}

// Where to compute n elements of an output, and the conversion afterwards.
template <class S>
FO_HD Compute<S>* destination(S* y, Compute<S>* buffer) {
  if constexpr (__is_same(S, Compute<S>)) {
    return y;
  } else {
    return buffer;
  }
}
template <class S>
FO_HD void deliver(const Compute<S>* staged, S* y, Index n) {
  if constexpr (!__is_same(S, Compute<S>)) {
    FO_INDEPENDENT
    for (Index i = 0; i < n; ++i) y[i] = Store<S>::from(staged[i]);
  }
}

template <class T>
FO_HD void add(const T* x, const T* y, T* sum, Index n) {
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) sum[i] = x[i] + y[i];
}

// The bias of a run of elements that starts at a given column.
template <class S>
class Bias {
 public:
  using T = Compute<S>;
  Bias(const void* bias, Index columns) : bias_(static_cast<const S*>(bias)), columns_(columns) {
    if (!bias_ || columns_ >= kShortRow) return;
    const T* row = stage(bias_, buffer_, columns_);
    for (Index j = 0; j < columns_; ++j) repeated_[j] = row[j];
    for (Index j = columns_; j < kRepeated + kShortRow; ++j) repeated_[j] = repeated_[j - columns_];
  }
  // How many elements from this column on lie side by side in `from`.
  Index run(Index column) const {
    return !bias_ ? kBlock : columns_ < kShortRow ? kRepeated : at_most(columns_ - column, kBlock);
  }
  const T* from(Index column, Index n) {
    return columns_ < kShortRow ? repeated_ + column : stage(bias_ + column, buffer_, n);
  }

 private:
  const S* bias_;
  Index columns_;
  T repeated_[kRepeated + kShortRow];
  Buffer<S> buffer_;
};

// Whether a kernel streams elements of a type: only those that are stored as they are computed.
template <class S>
constexpr bool kStreams = __is_same(S, Compute<S>);

// Elements to take next of the n from y on, and whether they are whole lines to stream.
template <class S>
FO_HD Index next_run(bool stream, const S* y, Index n, bool* lines) {
  *lines = false;
  return kStreams<S> && stream ? stream_run(y, n, lines) : n;
}

template <class S>
void activation(const ActivationArgs& args, Index begin, Index end) {
  using T = Compute<S>;
  using Loops = ActivationLoops<Activations, T>;
  const bool plain = args.formula < 0, stream = args.stream && !plain;
  const S* x = static_cast<const S*>(args.x);
  S* y = static_cast<S*>(args.y);
  Bias<S> bias(args.bias, args.columns);
  Buffer<S> buffer;
  for (Index at = begin, column = args.bias ? begin % args.columns : 0; at < end;) {
    bool lines;
    const Index n = next_run(stream, y + at, at_most(end - at, bias.run(column)), &lines);
    T* out = destination(y + at, buffer);
    const T* in = stage(x + at, buffer, n);
    if (args.bias) {
      T* sum = lines ? buffer : out;
      add(in, bias.from(column, n), sum, n);
      in = sum;
      column = (column + n) % args.columns;
    }
    if (!plain) (lines ? Loops::stream_values : Loops::values)[args.formula](in, out, n, args.params);
    deliver(out, y + at, n);
    at += n;
  }
  if (stream) stream_end();
}

template <class S>
void activation_grad(const ActivationGradArgs& args, Index begin, Index end) {
  using T = Compute<S>;
  using Loops = ActivationLoops<Activations, T>;
  const S *dy = static_cast<const S*>(args.dy), *x = static_cast<const S*>(args.x);
  const S* y = static_cast<const S*>(args.y);
  S* dx = static_cast<S*>(args.dx);
  Buffer<S> out, x_buffer, y_buffer;
  for (Index at = begin, n; at < end; at += n) {
    bool lines;
    n = next_run(args.stream, dx + at, at_most(end - at, kBlock), &lines);
    T* result = destination(dx + at, out);
    const Grad<T> formula = (lines ? Loops::stream_grads : Loops::grads)[args.formula];
    formula(stage(dy + at, out, n), x ? stage(x + at, x_buffer, n) : nullptr,
            y ? stage(y + at, y_buffer, n) : nullptr, result, n, args.params);
    deliver(result, dx + at, n);
  }
  if (args.stream) stream_end();
}

template <class S>
void dropout(const DropoutArgs& args, Index begin, Index end) {
  using T = Compute<S>;
  const S* x = static_cast<const S*>(args.x);
  S* y = static_cast<S*>(args.y);
  const T scale = T(args.scale);
  const std::uint32_t last_kept = args.last_kept;
  Buffer<S> buffer;
  std::uint32_t words[kBlock];
  for (Index at = begin; at < end; at += kBlock) {
    const Index n = at_most(end - at, kBlock);
    philox_fill(args.seed, args.offset, std::uint64_t(at), n, words);
    const T* in = stage(x + at, buffer, n);
    T* out = destination(y + at, buffer);
    FO_INDEPENDENT
    for (Index i = 0; i < n; ++i) out[i] = drop(words[i], last_kept, in[i], scale);
    deliver(out, y + at, n);
  }
}

template <class S>
void axpy(double a_, const void* x_, void* y_, Index begin, Index end) {
  const Compute<S> a = Compute<S>(a_);
  const S* x = static_cast<const S*>(x_);
  S* y = static_cast<S*>(y_);
  FO_INDEPENDENT
  for (Index i = begin; i < end; ++i) y[i] = Store<S>::from(fma(a, load(x[i]), load(y[i])));
}

template <class S>
constexpr ElementwiseKernels elementwise_kernels() {
  return {activation<S>, activation_grad<S>, dropout<S>, axpy<S>};
}
constexpr ElementwiseKernels kElementwise[] = {elementwise_kernels<float>(), elementwise_kernels<double>(),
                                               elementwise_kernels<Bf16>(), elementwise_kernels<F16>()};

}  // namespace

const ElementwiseKernels* elementwise_table() { return kElementwise; }
const MathKernels* math_table() { return kMath; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
