// The drivers elementwise, reduce and rows for Python: checks, then chunks on the pool without the GIL.
// Arrays are dense here; python/fastopt/_ops.py copies what is not.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/formulas.hpp"
#include "bindings/modules.hpp"
#include "core/cache.hpp"
#include "core/chunks.hpp"
#include "core/column_sums.hpp"
#include "core/dispatch.hpp"
#include "core/dropout.hpp"
#include "core/losses.hpp"

namespace fastopt {
namespace {

// An array that goes with `x`: same dtype and shape.
ArrayView like(py::handle object, const ArgName& name, const ArrayView& x, const ArgName& x_name) {
  const ArrayView view = dense_input(object, name);
  require_same_dtype(view, name, x, x_name);
  require_same_shape(view, name, x, x_name);
  return view;
}

// An output that goes with `x`, and is x itself or apart from it.
ArrayView output_like(py::handle object, const ArgName& name, const ArrayView& x, const ArgName& x_name) {
  const ArrayView view = like(object, name, x, x_name);
  require_dense(view, name, true);
  require_apart(view, name, x, x_name, true);
  return view;
}

// f(begin, end) over [0, n) in chunks on the pool, without the GIL.
template <class F>
void for_chunks(Index n, Index chunk, Index elements, F f) {
  const py::gil_scoped_release release;
  run_chunks(n, chunk, elements, f);
}

// The same for an f that returns its part of a reduction.
template <class M = Sum<double>, class F>
double reduce_chunks(Index n, Index chunk, Index elements, F f) {
  std::vector<double> parts;
  const py::gil_scoped_release release;
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

void activation(const std::string& name, const py::object& x_, const py::object& bias_,
                const py::tuple& params, const py::object& y_) {
  const bool plain = name.empty();
  const Chosen chosen =
      plain ? Chosen{-1, kActivations[0]} : choose("activation", kActivations, name, params);
  const char* call = plain ? "bias_activation" : chosen.info.name;
  const ArgName x_name{call, "x"}, bias_name{call, "bias"}, out_name{call, "out"};
  const ArrayView x = dense_input(x_, x_name);
  const ArrayView y = output_like(y_, out_name, x, x_name);
  ActivationArgs args{chosen.index, chosen.params, x.data, nullptr, 1, y.data};
  if (!bias_.is_none()) {
    const ArrayView bias = dense_input(bias_, bias_name);
    require_same_dtype(bias, bias_name, x, x_name);
    if (bias.ndim != 1 || x.ndim < 1 || bias.size != x.shape[x.ndim - 1])
      throw py::value_error(bias_name.prefix() + " has shape " + shape_text(bias) + ", x has shape " +
                            shape_text(x));
    args.bias = bias.data;
    args.columns = bias.size;
    require_apart(y, out_name, bias, bias_name, false);
  }
  args.stream = y.data != x.data && streams(y);
  const auto kernel = kernels().elementwise[int(x.dtype)].activation;
  for_chunks(x.size, kChunk, x.size, [&](Index begin, Index end) { kernel(args, begin, end); });
}

void activation_grad(const std::string& name, const py::object& dy_, const py::object& x_,
                     const py::object& y_, const py::tuple& params, const py::object& dx_) {
  const Chosen chosen = choose("activation_grad", kActivations, name, params);
  const char* call = chosen.info.name;
  const ArgName dy_name{call, "dy"}, x_name{call, "x"}, y_name{call, "y"}, out_name{call, "out"};
  const ArrayView dy = dense_input(dy_, dy_name);
  ActivationGradArgs args{chosen.index, chosen.params, dy.data, nullptr, nullptr, nullptr};
  const ArrayView dx = output_like(dx_, out_name, dy, dy_name);
  args.dx = dx.data;
  args.stream = dx.data != dy.data && streams(dx);
  const auto operand = [&](bool needed, const py::object& object,
                           const ArgName& operand_name) -> const void* {
    if (!needed) return nullptr;
    if (object.is_none())
      throw py::type_error(std::string(call) + ": the gradient needs " + operand_name.argument +
                           ", got None");
    const ArrayView view = like(object, operand_name, dy, dy_name);
    require_apart(dx, out_name, view, operand_name, true);
    if (view.data == dx.data) args.stream = false;
    return view.data;
  };
  args.x = operand(chosen.info.grad_needs_x, x_, x_name);
  args.y = operand(chosen.info.grad_needs_y, y_, y_name);
  const auto kernel = kernels().elementwise[int(dy.dtype)].activation_grad;
  for_chunks(dy.size, kChunk, dy.size, [&](Index begin, Index end) { kernel(args, begin, end); });
}

// 0 <= p <= 1.
void dropout(const py::object& x_, double p, std::uint64_t seed, std::uint64_t first, const py::object& y_) {
  const ArgName x_name{"dropout", "x"};
  const ArrayView x = dense_input(x_, x_name);
  const ArrayView y = output_like(y_, {"dropout", "out"}, x, x_name);
  if (p == 1.0) {
    std::memset(y.data, 0, std::size_t(y.size * item_bytes(y.dtype)));
    return;
  }
  const Kept stays = kept(p);
  const DropoutArgs args{x.data, y.data, seed, first, stays.last, stays.scale};
  const auto kernel = kernels().elementwise[int(x.dtype)].dropout;
  for_chunks(x.size, kChunk, x.size, [&](Index begin, Index end) { kernel(args, begin, end); });
}

void axpy(double a, const py::object& x_, const py::object& y_) {
  const ArgName x_name{"axpy", "x"}, y_name{"axpy", "y"};
  const ArrayView x = dense_input(x_, x_name), y = output_like(y_, y_name, x, x_name);
  const auto kernel = kernels().elementwise[int(x.dtype)].axpy;
  for_chunks(x.size, kChunk, x.size, [&](Index begin, Index end) { kernel(a, x.data, y.data, begin, end); });
}

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
  const ArrayView x = dense_input(x_, x_name), y = like(y_, {"dot", "y"}, x, x_name);
  require_computed(x, x_name);
  const auto kernel = kernels().sums[int(x.dtype)].dot;
  return reduce_chunks(x.size, kChunk, x.size, [&](Index begin, Index end) {
    return kernel(offset(x, begin), offset(y, begin), end - begin);
  });
}

void store(const ArrayView& out, Index element, double value) {
  if (out.dtype == DType::f32) {
    static_cast<float*>(out.data)[element] = float(value);
  } else {
    static_cast<double*>(out.data)[element] = value;
  }
}

void bias_grad(const py::object& dy_, const py::object& out_) {
  const ArgName dy_name{"bias_grad", "dy"}, out_name{"bias_grad", "out"};
  const ArrayView dy = dense_input(dy_, dy_name), out = dense_output(out_, out_name);
  require_computed(dy, dy_name);
  require_same_dtype(out, out_name, dy, dy_name);
  if (dy.ndim < 1 || out.ndim != 1 || out.size != dy.shape[dy.ndim - 1])
    throw py::value_error(out_name.prefix() + " has shape " + shape_text(out) + ", dy has shape " +
                          shape_text(dy));
  require_apart(out, out_name, dy, dy_name, false);
  const Index columns = out.size, rows = columns ? dy.size / columns : 0;
  const py::gil_scoped_release release;
  column_sums(dy.dtype, dy.data, rows, columns, out.data, false);
}

// The output of a loss, made by the caller for it: one entry, or one for each element or row.
ArrayView reduced_output(py::handle object, const ArgName& name, const ArrayView& x, const ArgName& x_name,
                         Index size) {
  const ArrayView view = dense_output(object, name);
  require_same_dtype(view, name, x, x_name);
  if (view.size != size)
    throw py::value_error(name.prefix() + " has " + std::to_string(view.size) + " entries, expected " +
                          std::to_string(size));
  return view;
}

// out receives the loss of each element, or the sum divided by the divisor.
void loss(const std::string& name, const py::object& input_, const py::object& target_,
          const py::tuple& params, const py::object& weight_, const py::object& param_,
          const py::object& out_, const py::object& grad_, double divisor, bool each) {
  const Chosen chosen = choose("loss", kLosses, name, params);
  const char* call = chosen.info.name;
  const ArgName input_name{call, "input"}, target_name{call, "target"}, weight_name{call, "weight"};
  const ArrayView input = dense_input(input_, input_name);
  require_computed(input, input_name);
  const ArrayView target = like(target_, target_name, input, input_name);
  LossArgs args{chosen.index, chosen.params, input.data, target.data,  nullptr,
                nullptr,      nullptr,       nullptr,    1.0 / divisor};
  std::vector<std::pair<ArrayView, ArgName>> inputs{{target, target_name}};
  const auto factor = [&](const py::object& object, const ArgName& factor_name) -> const void* {
    if (object.is_none()) return nullptr;
    inputs.emplace_back(like(object, factor_name, input, input_name), factor_name);
    return inputs.back().first.data;
  };
  args.weight = factor(weight_, weight_name);
  args.param = factor(param_, {call, chosen.info.params.size ? chosen.info.params.at[0] : "param"});
  const auto output = [&](const py::object& object, const ArgName& output_name) -> void* {
    if (object.is_none()) return nullptr;
    const ArrayView view = output_like(object, output_name, input, input_name);
    args.stream = view.data != input.data && streams(view);
    for (const auto& [other, other_name] : inputs) {
      require_apart(view, output_name, other, other_name, true);
      if (view.data == other.data) args.stream = false;
    }
    return view.data;
  };
  const ArrayView out = reduced_output(out_, {call, "out"}, input, input_name, each ? input.size : 1);
  if (each) args.value = out.data;
  args.grad = output(grad_, {call, "grad_out"});
  const auto kernel = kernels().sums[int(input.dtype)].loss;
  const double total = reduce_chunks(input.size, kChunk, input.size,
                                     [&](Index begin, Index end) { return kernel(args, begin, end); });
  if (!each) store(out, 0, total / divisor);
}

// Rows and columns of an array whose last axis is a row.
std::pair<Index, Index> rows_of(const ArrayView& x, const ArgName& name) {
  if (x.ndim < 1) throw py::value_error(name.prefix() + " has shape (), expected at least one axis");
  const Index columns = x.shape[x.ndim - 1];
  return {columns ? x.size / columns : 0, std::max<Index>(columns, 1)};
}

void softmax(const py::object& x_, const py::object& y_, bool log) {
  const char* call = log ? "log_softmax" : "softmax";
  const ArgName x_name{call, "x"};
  const ArrayView x = dense_input(x_, x_name);
  require_computed(x, x_name);
  const auto [rows, columns] = rows_of(x, x_name);
  const ArrayView y = output_like(y_, {call, "out"}, x, x_name);
  const SoftmaxArgs args{x.data, y.data, columns};
  const bool stream = y.data != x.data && streams_rows(y, columns);
  const RowKernels& row = kernels().rows[int(x.dtype)];
  const auto kernel = log ? row.log_softmax : row.softmax;
  for_chunks(rows, row_chunk(columns), x.size, [&](Index begin, Index end) {
    SoftmaxArgs own = args;
    if (stream) own.scratch = row_scratch();
    kernel(own, begin, end);
  });
}

void softmax_grad(const py::object& dy_, const py::object& y_, const py::object& dx_, bool log) {
  const char* call = log ? "log_softmax_grad" : "softmax_grad";
  const ArgName dy_name{call, "dy"}, y_name{call, "y"}, out_name{call, "out"};
  const ArrayView dy = dense_input(dy_, dy_name), y = like(y_, y_name, dy, dy_name);
  require_computed(dy, dy_name);
  const ArrayView dx = output_like(dx_, out_name, dy, dy_name);
  require_apart(dx, out_name, y, y_name, true);
  const auto [rows, columns] = rows_of(dy, dy_name);
  const bool stream = dx.data != dy.data && dx.data != y.data && streams(dx);
  const SoftmaxGradArgs args{dy.data, y.data, dx.data, columns, stream};
  const RowKernels& row = kernels().rows[int(dy.dtype)];
  const auto kernel = log ? row.log_softmax_grad : row.softmax_grad;
  for_chunks(rows, row_chunk(columns), dy.size, [&](Index begin, Index end) { kernel(args, begin, end); });
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

// ValueError for a class that is neither ignored nor in [0, columns).
void require_classes(const char* call, const Classes& target, Index columns, Index ignore_index) {
  const Index i = first_bad_class(target.data(), target.size(), columns, ignore_index);
  if (i < target.size())
    throw py::value_error(std::string(call) + ": " + element_text("target", target, i) + " is " +
                          std::to_string(target.data()[i]) + ", input has " + std::to_string(columns) +
                          " classes");
}

// input: (rows, classes); target: a class for each row, or probabilities shaped as input. out receives the
// loss of each row, their sum, or their mean, which divides by the weights that the classes use or by the
// rows.
void cross_entropy(const py::object& input_, const py::object& target_, const py::object& weight_,
                   const py::object& out_, const py::object& grad_, Index ignore_index,
                   double label_smoothing, const std::string& reduction, bool log_probabilities) {
  const char* call = log_probabilities ? "nll" : "cross_entropy";
  const ArgName input_name{call, "input"}, target_name{call, "target"}, weight_name{call, "weight"};
  const ArgName grad_name{call, "grad_out"};
  const ArrayView input = dense_input(input_, input_name);
  require_computed(input, input_name);
  const auto [rows, columns] = rows_of(input, input_name);
  CrossEntropyArgs args{input.data, nullptr, nullptr,      nullptr,         nullptr,
                        nullptr,    columns, ignore_index, label_smoothing, 1.0};
  const bool each = reduction == "none";
  const ArrayView out = reduced_output(out_, {call, "out"}, input, input_name, each ? rows : 1);
  if (each) args.value = out.data;
  ArrayView grad{}, weight{};
  if (!grad_.is_none()) {
    grad = output_like(grad_, grad_name, input, input_name);
    args.grad = grad.data;
  }
  if (!weight_.is_none()) {
    weight = dense_input(weight_, weight_name);
    require_same_dtype(weight, weight_name, input, input_name);
    if (weight.ndim != 1 || weight.size != columns)
      throw py::value_error(weight_name.prefix() + " has shape " + shape_text(weight) + ", input has " +
                            std::to_string(columns) + " classes");
    if (args.grad) require_apart(grad, grad_name, weight, weight_name, false);
    args.weight = weight.data;
  }
  Classes classes;
  double divisor = double(rows);
  if (py::isinstance<Classes>(target_)) {
    classes = py::reinterpret_borrow<Classes>(target_);
    if (classes.size() != rows)
      throw py::value_error(target_name.prefix() + " has " + std::to_string(classes.size()) +
                            " entries, input has " + std::to_string(rows) + " rows");
    require_classes(call, classes, columns, ignore_index);
    divisor = used_weight(input.dtype, classes.data(), rows, args.weight, ignore_index);
    args.target = classes.data();
    if (args.grad) {  // the kernel reads classes, unchecked, after it has written gradients
      const char* begin = reinterpret_cast<const char*>(args.target);
      require_apart(extent(grad, grad_name), {begin, begin + classes.nbytes(), target_name}, false);
    }
  } else {
    const ArrayView probabilities = like(target_, target_name, input, input_name);
    if (args.grad) require_apart(grad, grad_name, probabilities, target_name, false);
    args.probabilities = probabilities.data;
  }
  if (reduction != "mean") divisor = 1.0;
  args.grad_scale = 1.0 / divisor;
  const RowKernels& row = kernels().rows[int(input.dtype)];
  const auto kernel = log_probabilities ? row.nll : row.cross_entropy;
  const bool stream = args.grad && args.grad != args.x && streams_rows(grad, columns);
  const double total = reduce_chunks(rows, row_chunk(columns), input.size, [&](Index begin, Index end) {
    CrossEntropyArgs own = args;
    if (stream) own.scratch = row_scratch();
    return kernel(own, begin, end);
  });
  if (!each) store(out, 0, total / divisor);
}

}  // namespace

void bind_kernels(py::module_& m) {
  using py::arg;
  m.def(
      "activations", [] { return describe(kActivations); },
      "The activations by name: parameter names, and whether the gradient reads x and y.");
  m.def("losses", [] { return describe(kLosses); }, "The losses by name: parameter names first.");
  m.def("activation", &activation, arg("name"), arg("x"), arg("bias"), arg("params"), arg("out"),
        "out = act(x + bias); an empty name leaves act out.");
  m.def("activation_grad", &activation_grad, arg("name"), arg("dy"), arg("x"), arg("y"), arg("params"),
        arg("out"));
  m.def("dropout", &dropout, arg("x"), arg("p"), arg("seed"), arg("offset"), arg("out"));
  m.def("axpy", &axpy, arg("a"), arg("x"), arg("y"));
  m.def("sum", &reduce<Monoid::sum>, arg("x"));
  m.def("abs_sum", &reduce<Monoid::abs_sum>, arg("x"));
  m.def("sum_squares", &reduce<Monoid::sum_squares>, arg("x"));
  m.def("abs_max", &reduce<Monoid::abs_max, AbsMax<double>>, arg("x"));
  m.def("dot", &dot, arg("x"), arg("y"));
  m.def("bias_grad", &bias_grad, arg("dy"), arg("out"));
  m.def("loss", &loss, arg("name"), arg("input"), arg("target"), arg("params"), arg("weight"), arg("param"),
        arg("out"), arg("grad_out"), arg("divisor"), arg("each"));
  m.def("softmax", &softmax, arg("x"), arg("out"), arg("log"));
  m.def("softmax_grad", &softmax_grad, arg("dy"), arg("y"), arg("out"), arg("log"));
  m.def("cross_entropy", &cross_entropy, arg("input"), arg("target"), arg("weight"), arg("out"),
        arg("grad_out"), arg("ignore_index"), arg("label_smoothing"), arg("reduction"),
        arg("log_probabilities"));
}

}  // namespace fastopt
