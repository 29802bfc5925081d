// The drivers elementwise, reduce and rows for NumPy arrays: what has been checked runs in chunks on the
// pool, without the GIL.
#include "bindings/kernels.hpp"

#include <cstring>

#include "bindings/batch_norm.hpp"
#include "bindings/gil.hpp"
#include "bindings/modules.hpp"
#include "core/cache.hpp"
#include "core/chunks.hpp"
#include "core/column_sums.hpp"
#include "core/losses.hpp"

namespace fastopt {
namespace {

// f(begin, end) over [0, n) in chunks on the pool, without the GIL.
template <class F>
void for_chunks(Index n, Index chunk, Index elements, F f) {
  const ReleasedGil release;
  run_chunks(n, chunk, elements, f);
}

// The same for an f that returns its part of a reduction.
template <class M = Sum<double>, class F>
double reduce_chunks(Index n, Index chunk, Index elements, F f) {
  std::vector<double> parts;
  const ReleasedGil release;
  return merge_chunks<M>(n, chunk, elements, parts, f);
}

// Whether an output is so large that it would only drive other data out of the caches.
bool streams(const ArrayView& out) { return out.size * item_bytes(out.dtype) >= stream_bytes(); }

// The same of rows that a kernel first keeps in scratch memory, which has to stay in the second-level cache.
constexpr Index kScratchBytes = 256 << 10;
bool streams_rows(const ArrayView& out, Index columns) {
  return columns * item_bytes(out.dtype) <= kScratchBytes && streams(out);
}
// The calling thread's scratch memory: its pages are faulted in once.
void* row_scratch() {
  alignas(64) thread_local std::byte memory[kScratchBytes];
  return memory;
}

const void* offset(const ArrayView& x, Index element) {
  return static_cast<const char*>(x.data) + element * item_bytes(x.dtype);
}

void store(const ArrayView& out, Index element, double value) {
  if (out.dtype == DType::f32) {
    static_cast<float*>(out.data)[element] = float(value);
  } else {
    static_cast<double*>(out.data)[element] = value;
  }
}

using Classes = py::array_t<Index, py::array::c_style>;

// "target[1, 3]" for an element of an array of any shape.
std::string element_text(const char* argument, const Classes& array, Index element) {
  std::string text;
  for (py::ssize_t d = array.ndim() - 1; d >= 0; --d) {
    const Index size = std::max<Index>(array.shape(d), 1);
    text = std::to_string(element % size) + (text.empty() ? "" : ", ") + text;
    element /= size;
  }
  return array.ndim() ? std::string(argument) + "[" + text + "]" : argument;
}

// The CPU, over NumPy arrays.
struct Cpu {
  using View = ArrayView;
  using Divisor = double;

  static View view(py::handle object, const ArgName& name) { return array_view(object, name); }
  static void require_computed(const View& x, const ArgName& name) { fastopt::require_computed(x, name); }

  static void activation(ActivationArgs args, const View& y) {
    args.stream = args.y != args.x && streams(y);
    const auto kernel = kernels().elementwise[int(y.dtype)].activation;
    for_chunks(y.size, kChunk, y.size, [&](Index begin, Index end) { kernel(args, begin, end); });
  }

  static void activation_grad(ActivationGradArgs args, const View& dx) {
    args.stream = args.dx != args.dy && args.dx != args.x && args.dx != args.y && streams(dx);
    const auto kernel = kernels().elementwise[int(dx.dtype)].activation_grad;
    for_chunks(dx.size, kChunk, dx.size, [&](Index begin, Index end) { kernel(args, begin, end); });
  }

  static void clear(const View& y) { std::memset(y.data, 0, std::size_t(y.size * item_bytes(y.dtype))); }
  static void dropout(const DropoutArgs& args, const View& y) {
    const auto kernel = kernels().elementwise[int(y.dtype)].dropout;
    for_chunks(y.size, kChunk, y.size, [&](Index begin, Index end) { kernel(args, begin, end); });
  }

  static void axpy(double a, const View& x, const View& y) {
    const auto kernel = kernels().elementwise[int(x.dtype)].axpy;
    for_chunks(x.size, kChunk, x.size,
               [&](Index begin, Index end) { kernel(a, x.data, y.data, begin, end); });
  }

  static void column_sums(const View& x, const View& out) {
    const Index columns = out.size, rows = columns ? x.size / columns : 0;
    const ReleasedGil release;
    fastopt::column_sums(x.dtype, x.data, rows, columns, out.data, false);
  }

  static void loss(LossArgs args, const View& input, const View& out, double divisor, bool each) {
    args.grad_scale = 1.0 / divisor;
    const auto is_input = [&](const void* x) { return x == args.grad; };
    args.stream = args.grad && !is_input(args.x) && !is_input(args.t) && !is_input(args.weight) &&
                  !is_input(args.param) && streams(input);
    const auto kernel = kernels().sums[int(input.dtype)].loss;
    const double total = reduce_chunks(input.size, kChunk, input.size,
                                       [&](Index begin, Index end) { return kernel(args, begin, end); });
    if (!each) store(out, 0, total / divisor);
  }

  static void softmax(const SoftmaxArgs& args, bool log, Index rows, const View& y) {
    const bool stream = args.y != args.x && streams_rows(y, args.columns);
    const RowKernels& row = kernels().rows[int(y.dtype)];
    const auto kernel = log ? row.log_softmax : row.softmax;
    for_chunks(rows, row_chunk(args.columns), y.size, [&](Index begin, Index end) {
      SoftmaxArgs own = args;
      if (stream) own.scratch = row_scratch();
      kernel(own, begin, end);
    });
  }

  static void softmax_grad(SoftmaxGradArgs args, bool log, Index rows, const View& dx) {
    args.stream = args.dx != args.dy && args.dx != args.y && streams(dx);
    const RowKernels& row = kernels().rows[int(dx.dtype)];
    const auto kernel = log ? row.log_softmax_grad : row.softmax_grad;
    for_chunks(rows, row_chunk(args.columns), dx.size,
               [&](Index begin, Index end) { kernel(args, begin, end); });
  }

  static void batch_norm(BatchNormArgs args, const BatchNormMode& mode, Index rows, const View& y) {
    const Index columns = args.columns;
    const ReleasedGil release;
    if (mode.training) {
      batch_statistics(y.dtype, args.x, rows, columns, mode.eps, mode.saved);
      if (mode.running_mean)
        track(y.dtype, mode.saved, columns, mode.momentum, 1.0, mode.running_mean, mode.running_var);
    } else {
      args.mean = mode.running_mean;
      std::memcpy(mode.saved.mean, mode.running_mean, std::size_t(columns * item_bytes(y.dtype)));
      running_rstd(y.dtype, mode.running_var, columns, mode.eps, mode.saved.rstd);
    }
    args.stream = args.y != args.x && streams(y);
    const auto kernel = kernels().batch_norm[int(y.dtype)].normalize;
    run_chunks(rows, row_chunk(columns), y.size, [&](Index begin, Index end) { kernel(args, begin, end); });
  }

  static void batch_norm_grad(BatchNormGradArgs args, const BatchSaved& saved, bool training, void* dweight,
                              void* dbias, Index rows, const View& x) {
    const Index columns = args.columns;
    const ReleasedGil release;
    std::vector<double> terms(std::size_t(2 * columns));  // room for either type
    if (training) {
      args.center = terms.data();
      args.slope = terms.data() + columns;
    }
    if (dweight || (training && args.dx))
      batch_norm_sums(x.dtype, args.dy, args.x, rows, columns, saved,
                      {dweight, dbias, const_cast<void*>(args.center), const_cast<void*>(args.slope)});
    if (!args.dx) return;
    args.stream = args.dx != args.dy && args.dx != args.x && streams(x);
    const BatchNormKernels& kernel = kernels().batch_norm[int(x.dtype)];
    run_chunks(rows, row_chunk(columns), x.size, [&](Index begin, Index end) {
      training ? kernel.normalize_grad(args, begin, end)
               : kernel.normalize(constant_grad_args(args), begin, end);
    });
  }

  static std::optional<ClassView> classes(const py::object& target, const ArgName&) {
    if (!py::isinstance<Classes>(target)) return std::nullopt;
    const auto held = py::reinterpret_borrow<Classes>(target);
    return ClassView{held.data(), held.size()};
  }

  // ValueError for a class that is neither ignored nor in [0, columns).
  static void require_classes(const char* call, const py::object& target_, const CrossEntropyArgs& args) {
    const auto target = py::reinterpret_borrow<Classes>(target_);
    const Index i = first_bad_class(target.data(), target.size(), args.columns, args.ignore_index);
    if (i < target.size())
      throw py::value_error(std::string(call) + ": " + element_text("target", target, i) + " is " +
                            std::to_string(target.data()[i]) + ", input has " + std::to_string(args.columns) +
                            " classes");
  }

  static void cross_entropy(CrossEntropyArgs args, bool log_probabilities, Index rows, const View& input,
                            const View& out, Reduction reduction) {
    double divisor = 1.0;
    if (reduction == Reduction::mean)
      divisor = args.target ? used_weight(input.dtype, args.target, rows, args.weight, args.ignore_index)
                            : double(rows);
    args.grad_scale = 1.0 / divisor;
    const RowKernels& row = kernels().rows[int(input.dtype)];
    const auto kernel = log_probabilities ? row.nll : row.cross_entropy;
    const bool stream = args.grad && args.grad != args.x && streams_rows(input, args.columns);
    const double total =
        reduce_chunks(rows, row_chunk(args.columns), input.size, [&](Index begin, Index end) {
          CrossEntropyArgs own = args;
          if (stream) own.scratch = row_scratch();
          return kernel(own, begin, end);
        });
    if (reduction != Reduction::none) store(out, 0, total / divisor);
  }
};

template <Monoid kind, class M = Sum<double>>
double reduce(const py::object& x_) {
  constexpr const char* kNames[] = {"sum", "abs_sum", "sum_squares", "abs_max"};
  const ArrayView x = dense_input(x_, {kNames[int(kind)], "x"});
  const auto kernel = kernels().reduce[int(kind)].at[int(x.dtype)];
  return reduce_chunks<M>(x.size, kChunk, x.size,
                          [&](Index begin, Index end) { return kernel(offset(x, begin), end - begin); });
}

double dot(const py::object& x_, const py::object& y_) {
  const ArgName x_name{"dot", "x"};
  Cpu cpu;
  const ArrayView x = dense_input(x_, x_name), y = like(cpu, y_, {"dot", "y"}, x, x_name);
  require_computed(x, x_name);
  const auto kernel = kernels().sums[int(x.dtype)].dot;
  return reduce_chunks(x.size, kChunk, x.size, [&](Index begin, Index end) {
    return kernel(offset(x, begin), offset(y, begin), end - begin);
  });
}

struct CpuBinder {
  py::module_& m;

  template <class... A, class... E>
  void def(const char* name, void (*function)(Cpu&, A...), const E&... extra) const {
    m.def(
        name,
        [function](A... args) {
          Cpu cpu;
          function(cpu, args...);
        },
        extra...);
  }
};

}  // namespace

void bind_kernels(py::module_& m) {
  using py::arg;
  m.def(
      "activations", [] { return describe(kActivations); },
      "The activations by name: parameter names, and whether the gradient reads x and y.");
  m.def("losses", [] { return describe(kLosses); }, "The losses by name: parameter names first.");
  m.def("sum", &reduce<Monoid::sum>, arg("x"));
  m.def("abs_sum", &reduce<Monoid::abs_sum>, arg("x"));
  m.def("sum_squares", &reduce<Monoid::sum_squares>, arg("x"));
  m.def("abs_max", &reduce<Monoid::abs_max, AbsMax<double>>, arg("x"));
  m.def("dot", &dot, arg("x"), arg("y"));
  bind_checked<Cpu>(CpuBinder{m});
  bind_batch_norm<Cpu>(CpuBinder{m});
}

}  // namespace fastopt
