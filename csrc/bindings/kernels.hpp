// What the drivers elementwise, reduce and rows are in _core and in _cuda: the checks of their arguments.
// Arrays are dense here; the Python above copies what is not.
//
// Place: where the arrays are and the kernels run. Its `view` returns a Place::View, which is an ArrayView;
// `require_computed` refuses dtypes that losses and rows are not computed in; `classes` returns what an array
// of classes has, or nothing of another; the rest runs arguments that have been checked.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/formulas.hpp"
#include "core/dispatch.hpp"
#include "core/dropout.hpp"

namespace fastopt {

// Classes for a loss to read, one for each row.
struct ClassView {
  const Index* data;
  Index size;
};

// What becomes of the losses of rows.
enum class Reduction : std::uint8_t { none, sum, mean };

template <class Place>
auto dense_input(Place& place, py::handle object, const ArgName& name) {
  const typename Place::View view = place.view(object, name);
  require_dense(view, name, false);
  return view;
}
template <class Place>
auto dense_output(Place& place, py::handle object, const ArgName& name) {
  const typename Place::View view = place.view(object, name);
  require_dense(view, name, true);
  return view;
}

// An array that goes with `x`: same dtype and shape.
template <class Place>
auto like(Place& place, py::handle object, const ArgName& name, const ArrayView& x, const ArgName& x_name) {
  const auto view = dense_input(place, object, name);
  require_same_dtype(view, name, x, x_name);
  require_same_shape(view, name, x, x_name);
  return view;
}

// An output that goes with `x`, and is x itself or apart from it.
template <class Place>
auto output_like(Place& place, py::handle object, const ArgName& name, const ArrayView& x,
                 const ArgName& x_name) {
  const auto view = like(place, object, name, x, x_name);
  require_dense(view, name, true);
  require_apart(view, name, x, x_name, true);
  return view;
}

template <class Place>
void activation(Place& place, const std::string& name, const py::object& x_, const py::object& bias_,
                const py::tuple& params, const py::object& y_) {
  const bool plain = name.empty();
  const Chosen chosen =
      plain ? Chosen{-1, kActivations[0]} : choose("activation", kActivations, name, params);
  const char* call = plain ? "bias_activation" : chosen.info.name;
  const ArgName x_name{call, "x"}, bias_name{call, "bias"}, out_name{call, "out"};
  const auto x = dense_input(place, x_, x_name);
  const auto y = output_like(place, y_, out_name, x, x_name);
  ActivationArgs args{chosen.index, chosen.params, x.data, nullptr, 1, y.data};
  if (!bias_.is_none()) {
    const auto bias = dense_input(place, bias_, bias_name);
    require_same_dtype(bias, bias_name, x, x_name);
    if (bias.ndim != 1 || x.ndim < 1 || bias.size != x.shape[x.ndim - 1])
      throw py::value_error(bias_name.prefix() + " has shape " + shape_text(bias) + ", x has shape " +
                            shape_text(x));
    args.bias = bias.data;
    args.columns = bias.size;
    require_apart(y, out_name, bias, bias_name, false);
  }
  place.activation(args, y);
}

template <class Place>
void activation_grad(Place& place, const std::string& name, const py::object& dy_, const py::object& x_,
                     const py::object& y_, const py::tuple& params, const py::object& dx_) {
  const Chosen chosen = choose("activation_grad", kActivations, name, params);
  const char* call = chosen.info.name;
  const ArgName dy_name{call, "dy"}, x_name{call, "x"}, y_name{call, "y"}, out_name{call, "out"};
  const auto dy = dense_input(place, dy_, dy_name);
  ActivationGradArgs args{chosen.index, chosen.params, dy.data, nullptr, nullptr, nullptr};
  const auto dx = output_like(place, dx_, out_name, dy, dy_name);
  args.dx = dx.data;
  const auto operand = [&](bool needed, const py::object& object,
                           const ArgName& operand_name) -> const void* {
    if (!needed) return nullptr;
    if (object.is_none())
      throw py::type_error(std::string(call) + ": the gradient needs " + operand_name.argument +
                           ", got None");
    const auto view = like(place, object, operand_name, dy, dy_name);
    require_apart(dx, out_name, view, operand_name, true);
    return view.data;
  };
  args.x = operand(chosen.info.grad_needs_x, x_, x_name);
  args.y = operand(chosen.info.grad_needs_y, y_, y_name);
  place.activation_grad(args, dx);
}

// 0 <= p <= 1.
template <class Place>
void dropout(Place& place, const py::object& x_, double p, std::uint64_t seed, std::uint64_t first,
             const py::object& y_) {
  const ArgName x_name{"dropout", "x"};
  const auto x = dense_input(place, x_, x_name);
  const auto y = output_like(place, y_, {"dropout", "out"}, x, x_name);
  if (p == 1.0) return place.clear(y);
  const Kept stays = kept(p);
  place.dropout({x.data, y.data, seed, first, stays.last, stays.scale}, y);
}

template <class Place>
void axpy(Place& place, double a, const py::object& x_, const py::object& y_) {
  const ArgName x_name{"axpy", "x"}, y_name{"axpy", "y"};
  const auto x = dense_input(place, x_, x_name), y = output_like(place, y_, y_name, x, x_name);
  place.axpy(a, x, y);
}

template <class Place>
void bias_grad(Place& place, const py::object& dy_, const py::object& out_) {
  const ArgName dy_name{"bias_grad", "dy"}, out_name{"bias_grad", "out"};
  const auto dy = dense_input(place, dy_, dy_name), out = dense_output(place, out_, out_name);
  place.require_computed(dy, dy_name);
  require_same_dtype(out, out_name, dy, dy_name);
  if (dy.ndim < 1 || out.ndim != 1 || out.size != dy.shape[dy.ndim - 1])
    throw py::value_error(out_name.prefix() + " has shape " + shape_text(out) + ", dy has shape " +
                          shape_text(dy));
  require_apart(out, out_name, dy, dy_name, false);
  place.column_sums(dy, out);
}

// The output of a loss, made by the caller for it: one entry, or one for each element or row.
template <class Place>
auto reduced_output(Place& place, py::handle object, const ArgName& name, const ArrayView& x,
                    const ArgName& x_name, Index size) {
  const auto view = dense_output(place, object, name);
  require_same_dtype(view, name, x, x_name);
  if (view.size != size)
    throw py::value_error(name.prefix() + " has " + std::to_string(view.size) + " entries, expected " +
                          std::to_string(size));
  return view;
}

// out receives the loss of each element, or the sum divided by the divisor.
template <class Place>
void loss(Place& place, const std::string& name, const py::object& input_, const py::object& target_,
          const py::tuple& params, const py::object& weight_, const py::object& param_,
          const py::object& out_, const py::object& grad_, const typename Place::Divisor& divisor,
          bool each) {
  const Chosen chosen = choose("loss", kLosses, name, params);
  const char* call = chosen.info.name;
  const ArgName input_name{call, "input"}, target_name{call, "target"}, weight_name{call, "weight"};
  const auto input = dense_input(place, input_, input_name);
  place.require_computed(input, input_name);
  const auto target = like(place, target_, target_name, input, input_name);
  LossArgs args{chosen.index, chosen.params, input.data, target.data, nullptr,
                nullptr,      nullptr,       nullptr,    1.0};
  std::vector<std::pair<typename Place::View, ArgName>> inputs{{target, target_name}};
  const auto factor = [&](const py::object& object, const ArgName& factor_name) -> const void* {
    if (object.is_none()) return nullptr;
    inputs.emplace_back(like(place, object, factor_name, input, input_name), factor_name);
    return inputs.back().first.data;
  };
  args.weight = factor(weight_, weight_name);
  args.param = factor(param_, {call, chosen.info.params.size ? chosen.info.params.at[0] : "param"});
  const auto output = [&](const py::object& object, const ArgName& output_name) -> void* {
    if (object.is_none()) return nullptr;
    const auto view = output_like(place, object, output_name, input, input_name);
    for (const auto& [other, other_name] : inputs) require_apart(view, output_name, other, other_name, true);
    return view.data;
  };
  const auto out = reduced_output(place, out_, {call, "out"}, input, input_name, each ? input.size : 1);
  if (each) args.value = out.data;
  args.grad = output(grad_, {call, "grad_out"});
  place.loss(args, input, out, divisor, each);
}

// Rows and columns of an array whose last axis is a row.
inline std::pair<Index, Index> rows_of(const ArrayView& x, const ArgName& name) {
  if (x.ndim < 1) throw py::value_error(name.prefix() + " has shape (), expected at least one axis");
  const Index columns = x.shape[x.ndim - 1];
  return {columns ? x.size / columns : 0, std::max<Index>(columns, 1)};
}

template <class Place>
void softmax(Place& place, const py::object& x_, const py::object& y_, bool log) {
  const char* call = log ? "log_softmax" : "softmax";
  const ArgName x_name{call, "x"};
  const auto x = dense_input(place, x_, x_name);
  place.require_computed(x, x_name);
  const auto [rows, columns] = rows_of(x, x_name);
  const auto y = output_like(place, y_, {call, "out"}, x, x_name);
  place.softmax({x.data, y.data, columns}, log, rows, y);
}

template <class Place>
void softmax_grad(Place& place, const py::object& dy_, const py::object& y_, const py::object& dx_,
                  bool log) {
  const char* call = log ? "log_softmax_grad" : "softmax_grad";
  const ArgName dy_name{call, "dy"}, y_name{call, "y"}, out_name{call, "out"};
  const auto dy = dense_input(place, dy_, dy_name), y = like(place, y_, y_name, dy, dy_name);
  place.require_computed(dy, dy_name);
  const auto dx = output_like(place, dx_, out_name, dy, dy_name);
  require_apart(dx, out_name, y, y_name, true);
  const auto [rows, columns] = rows_of(dy, dy_name);
  place.softmax_grad({dy.data, y.data, dx.data, columns}, log, rows, dx);
}

inline Reduction reduction_of(const std::string& name) {
  return name == "none" ? Reduction::none : name == "mean" ? Reduction::mean : Reduction::sum;
}

// input: (rows, classes); target: a class for each row, or probabilities shaped as input. out receives the
// loss of each row, their sum, or their mean, which divides by the weights that the classes use or by the
// rows.
template <class Place>
void cross_entropy(Place& place, const py::object& input_, const py::object& target_,
                   const py::object& weight_, const py::object& out_, const py::object& grad_,
                   Index ignore_index, double label_smoothing, const std::string& reduction_,
                   bool log_probabilities) {
  const char* call = log_probabilities ? "nll" : "cross_entropy";
  const ArgName input_name{call, "input"}, target_name{call, "target"}, weight_name{call, "weight"};
  const ArgName grad_name{call, "grad_out"};
  const auto input = dense_input(place, input_, input_name);
  place.require_computed(input, input_name);
  const auto [rows, columns] = rows_of(input, input_name);
  CrossEntropyArgs args{input.data, nullptr, nullptr,      nullptr,         nullptr,
                        nullptr,    columns, ignore_index, label_smoothing, 1.0};
  const Reduction reduction = reduction_of(reduction_);
  const bool each = reduction == Reduction::none;
  const auto out = reduced_output(place, out_, {call, "out"}, input, input_name, each ? rows : 1);
  if (each) args.value = out.data;
  typename Place::View grad{}, weight{};
  if (!grad_.is_none()) {
    grad = output_like(place, grad_, grad_name, input, input_name);
    args.grad = grad.data;
  }
  if (!weight_.is_none()) {
    weight = dense_input(place, weight_, weight_name);
    require_same_dtype(weight, weight_name, input, input_name);
    if (weight.ndim != 1 || weight.size != columns)
      throw py::value_error(weight_name.prefix() + " has shape " + shape_text(weight) + ", input has " +
                            std::to_string(columns) + " classes");
    if (args.grad) require_apart(grad, grad_name, weight, weight_name, false);
    args.weight = weight.data;
  }
  if (const std::optional<ClassView> classes = place.classes(target_, target_name)) {
    if (classes->size != rows)
      throw py::value_error(target_name.prefix() + " has " + std::to_string(classes->size) +
                            " entries, input has " + std::to_string(rows) + " rows");
    args.target = classes->data;
    place.require_classes(call, target_, args);
    if (args.grad) {  // the kernel reads classes, unchecked, after it has written gradients
      const char* begin = reinterpret_cast<const char*>(args.target);
      require_apart(extent(grad, grad_name), {begin, begin + rows * Index(sizeof(Index)), target_name},
                    false);
    }
  } else {
    const auto probabilities = like(place, target_, target_name, input, input_name);
    if (args.grad) require_apart(grad, grad_name, probabilities, target_name, false);
    args.probabilities = probabilities.data;
  }
  place.cross_entropy(args, log_probabilities, rows, input, out, reduction);
}

// The functions above as Python sees them. Binder: `def(name, function, extra...)` makes a function of a
// Place one of Python's.
template <class Place, class Binder>
void bind_checked(const Binder& binder) {
  using py::arg;
  binder.def("activation", &activation<Place>, "out = act(x + bias); an empty name leaves act out.",
             arg("name"), arg("x"), arg("bias"), arg("params"), arg("out"));
  binder.def("activation_grad", &activation_grad<Place>, "out = dy act'(x, y).", arg("name"), arg("dy"),
             arg("x"), arg("y"), arg("params"), arg("out"));
  binder.def("dropout", &dropout<Place>, "out = x keep / (1 - p).", arg("x"), arg("p"), arg("seed"),
             arg("offset"), arg("out"));
  binder.def("axpy", &axpy<Place>, "y += a x.", arg("a"), arg("x"), arg("y"));
  binder.def("bias_grad", &bias_grad<Place>, "out = the sums over all axes of dy but the last.", arg("dy"),
             arg("out"));
  binder.def("loss", &loss<Place>, "A loss of single elements, with its gradient.", arg("name"), arg("input"),
             arg("target"), arg("params"), arg("weight"), arg("param"), arg("out"), arg("grad_out"),
             arg("divisor"), arg("each"));
  binder.def("softmax", &softmax<Place>, "Over the last axis.", arg("x"), arg("out"), arg("log"));
  binder.def("softmax_grad", &softmax_grad<Place>, "Over the last axis.", arg("dy"), arg("y"), arg("out"),
             arg("log"));
  binder.def("cross_entropy", &cross_entropy<Place>, "Over the last axis, with its gradient.", arg("input"),
             arg("target"), arg("weight"), arg("out"), arg("grad_out"), arg("ignore_index"),
             arg("label_smoothing"), arg("reduction"), arg("log_probabilities"));
}

}  // namespace fastopt
