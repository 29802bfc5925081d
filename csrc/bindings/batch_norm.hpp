// Batch normalisation in _core and in _cuda: the checks of its arrays. Place: as in bindings/kernels.hpp.
#pragma once

#include <string>

#include "bindings/kernels.hpp"
#include "core/batch_norm.hpp"

namespace fastopt {

// What a normalisation does besides its pass over the numbers; null statistics: none are kept.
struct BatchNormMode {
  bool training;  // with the statistics of the batch
  double momentum, eps;
  void *running_mean, *running_var;
  BatchSaved saved;
};

// The numbers of the channels, in rows of an array of their own.
inline BatchSaved saved_rows(void* data, Index columns, DType dtype) {
  return {data, element_at(data, columns, dtype), element_at(data, 2 * columns, dtype)};
}

// Numbers whose last axis is the channels'.
template <class Place>
auto channel_input(Place& place, const py::object& object, const ArgName& name) {
  const auto x = dense_input(place, object, name);
  require_computed(x, name);
  return x;
}

// A number for each channel in each of so many rows, or None.
template <class Place>
void* channel_numbers(Place& place, const py::object& object, const ArgName& name, const ArrayView& x,
                      const ArgName& x_name, Index rows = 0, bool written = false) {
  if (object.is_none()) return nullptr;
  const auto view = place.view(object, name);
  require_dense(view, name, written);
  require_same_dtype(view, name, x, x_name);
  const Index channels = x.shape[x.ndim - 1];
  if (view.ndim != (rows ? 2 : 1) || view.size != std::max<Index>(rows, 1) * channels)
    throw py::value_error(name.prefix() + " has shape " + shape_text(view) + ", " + x_name.argument +
                          " has " + std::to_string(channels) + " channels");
  return view.data;
}

// saved: (3, C), receives mean, 1 / sqrt(var + eps) and, in training, the unbiased variance.
template <class Place>
void batch_norm(Place& place, const py::object& x_, const py::object& weight_, const py::object& bias_,
                const py::object& mean_, const py::object& var_, bool training, double momentum, double eps,
                const py::object& saved_, const py::object& y_) {
  const char* call = "batch_norm";
  const ArgName x_name{call, "input"}, out_name{call, "out"}, saved_name{call, "saved"};
  const auto x = channel_input(place, x_, x_name);
  const auto [rows, columns] = rows_of(x, x_name);
  const auto numbers = [&](const py::object& object, const char* argument, bool written) {
    return channel_numbers(place, object, {call, argument}, x, x_name, 0, written);
  };
  BatchNormArgs args{};
  args.x = x.data;
  args.columns = columns;
  args.weight = numbers(weight_, "weight", false);
  args.bias = numbers(bias_, "bias", false);
  BatchNormMode mode{training,
                     momentum,
                     eps,
                     numbers(mean_, "running_mean", training),
                     numbers(var_, "running_var", training),
                     {}};
  if ((!mode.running_mean || !mode.running_var) && (!training || mode.running_mean || mode.running_var))
    throw py::value_error("batch_norm: running_mean and running_var go together, and evaluation needs them");
  if (training && rows < 2)
    throw py::value_error("batch_norm: input has " + std::to_string(rows) +
                          " value per channel, training needs more than 1");
  const auto saved = dense_output(place, saved_, saved_name);
  mode.saved = saved_rows(channel_numbers(place, saved_, saved_name, x, x_name, 3, true), columns, x.dtype);
  if (!mode.saved.mean) throw py::type_error("batch_norm: saved is None");
  const auto y = output_like(place, y_, out_name, x, x_name);
  require_apart(y, out_name, saved, saved_name, false);
  args.y = y.data;
  args.mean = mode.saved.mean;
  args.rstd = mode.saved.rstd;
  place.batch_norm(args, mode, rows, y);
}

// saved: as batch_norm left it. out: the input's gradient, or None. sums: (2, C), receives the gradients of
// weight and bias, or None.
template <class Place>
void batch_norm_grad(Place& place, const py::object& dy_, const py::object& x_, const py::object& saved_,
                     const py::object& weight_, bool training, const py::object& dx_,
                     const py::object& sums_) {
  const char* call = "batch_norm_grad";
  const ArgName dy_name{call, "dy"}, x_name{call, "input"}, out_name{call, "out"};
  const auto dy = channel_input(place, dy_, dy_name);
  const auto x = like(place, x_, x_name, dy, dy_name);
  const auto [rows, columns] = rows_of(x, x_name);
  void* const kept = channel_numbers(place, saved_, {call, "saved"}, x, x_name, 3);
  if (!kept) throw py::type_error("batch_norm_grad: saved is None");
  const BatchSaved saved = saved_rows(kept, columns, x.dtype);
  BatchNormGradArgs args{};
  args.dy = dy.data;
  args.x = x.data;
  args.columns = columns;
  args.mean = saved.mean;
  args.rstd = saved.rstd;
  args.weight = channel_numbers(place, weight_, {call, "weight"}, x, x_name);
  if (!dx_.is_none()) {
    const auto dx = output_like(place, dx_, out_name, dy, dy_name);
    require_apart(dx, out_name, x, x_name, true);
    args.dx = dx.data;
  }
  void* const sums = channel_numbers(place, sums_, {call, "sums"}, x, x_name, 2, true);
  place.batch_norm_grad(args, saved, training, sums, element_at(sums, columns, x.dtype), rows, x);
}

template <class Place, class Binder>
void bind_batch_norm(const Binder& binder) {
  using py::arg;
  binder.def("batch_norm", &batch_norm<Place>, "Over the columns of a matrix.", arg("input"), arg("weight"),
             arg("bias"), arg("running_mean"), arg("running_var"), arg("training"), arg("momentum"),
             arg("eps"), arg("saved"), arg("out"));
  binder.def("batch_norm_grad", &batch_norm_grad<Place>, "The gradients of batch_norm.", arg("dy"),
             arg("input"), arg("saved"), arg("weight"), arg("training"), arg("out"), arg("sums"));
}

}  // namespace fastopt
