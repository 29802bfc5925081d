// The drivers elementwise, reduce and rows for device arrays: what has been checked is queued on the caller's
// stream. Numbers that _core returns go to arrays of one element, and a class out of range makes a loss NaN:
// an error could only be raised by waiting for the device.
#include "bindings/batch_norm.hpp"
#include "bindings/cuda_modules.hpp"
#include "bindings/device_arrays.hpp"
#include "bindings/kernels.hpp"
#include "cuda/kernels.hpp"

namespace fastopt {
namespace {

const double* one_double(DeviceCall& call, const py::object& object, const ArgName& name, bool written) {
  const DeviceView view = call.view(object, name);
  require_dense(view, name, written);
  if (view.dtype != DType::f64 || view.size != 1)
    throw py::type_error(name.prefix() + " is " + dtype_name(view.dtype) + " of shape " + shape_text(view) +
                         ", expected one float64");
  return static_cast<const double*>(view.data);
}

const Index* int64_array(const DeviceView& view, const ArgName& name) {
  if (view.kind != 'i' || view.item != sizeof(Index))
    throw py::type_error(name.prefix() + " is " + element_name(view) + ", expected int64");
  if (!view.c_contiguous) throw py::value_error(name.prefix() + " is not C-contiguous");
  return static_cast<const Index*>(view.data);
}

// A device, over the arrays in its memory.
class Device : public DeviceCall {
 public:
  using Divisor = py::object;  // a number, or one float64 on the device

  using DeviceCall::DeviceCall;

  static void require_computed(const View&, const ArgName&) {}  // narrow types are computed in float32

  void activation(const ActivationArgs& args, const View& y) const {
    activation_on_device(y.dtype, args, y.size, stream());
  }
  void activation_grad(const ActivationGradArgs& args, const View& dx) const {
    activation_grad_on_device(dx.dtype, args, dx.size, stream());
  }

  // From the zeros that scratch memory begins with.
  void clear(const View& y) const {
    const Scratch scratch(stream(), sum_scratch_bytes(0));
    DeviceCopy copy{scratch.get(), y.data, ItemType::u8, ItemType(int(y.dtype)), 1, {y.size}, {0}, {1}};
    copy_on_device(copy, stream());
  }
  void dropout(const DropoutArgs& args, const View& y) const {
    dropout_on_device(y.dtype, args, y.size, nullptr, stream());
  }

  void axpy(double a, const View& x, const View& y) const {
    axpy_on_device(x.dtype, a, x.data, y.data, x.size, stream());
  }

  void column_sums(const View& x, const View& out) const {
    const Index columns = out.size, rows = columns ? x.size / columns : 0;
    const Scratch scratch(stream(), column_sums_scratch_bytes(rows, columns));
    column_sums_on_device(x.dtype, x.data, rows, columns, out.data, false, scratch.get(), stream());
  }

  void loss(LossArgs args, const View& input, const View& out, const Divisor& divisor, bool each) {
    DeviceSum sum{each ? nullptr : out.data};
    if (py::isinstance<py::float_>(divisor) || py::isinstance<py::int_>(divisor)) {
      sum.divisor = divisor.cast<double>();
      args.grad_scale = 1.0 / sum.divisor;
    } else {
      sum.divisor_at = one_double(*this, divisor, {"loss", "divisor"}, false);
    }
    const Scratch scratch(stream(), sum_scratch_bytes(input.size));
    loss_on_device(input.dtype, args, input.size, sum, scratch.get(), stream());
  }

  void softmax(const SoftmaxArgs& args, bool log, Index rows, const View& y) const {
    softmax_on_device(y.dtype, args, log, rows, stream());
  }
  void softmax_grad(const SoftmaxGradArgs& args, bool log, Index rows, const View& dx) const {
    softmax_grad_on_device(dx.dtype, args, log, rows, stream());
  }

  void batch_norm(BatchNormArgs args, const BatchNormMode& mode, Index rows, const View& y) const {
    const Index columns = args.columns;
    if (mode.training) {
      const Scratch scratch(stream(), batch_norm_scratch_bytes(rows, columns));
      batch_statistics_on_device(y.dtype, args.x, rows, columns, mode.eps, mode.saved, scratch.get(),
                                 stream());
      if (mode.running_mean)
        track_on_device(y.dtype, mode.saved, columns, mode.momentum, nullptr, nullptr, mode.running_mean,
                        mode.running_var, stream());
    } else {
      const ItemType type = ItemType(int(y.dtype));
      copy_on_device({mode.running_mean, mode.saved.mean, type, type, 1, {columns}, {1}, {1}}, stream());
      running_rstd_on_device(y.dtype, mode.running_var, columns, mode.eps, mode.saved.rstd, stream());
    }
    normalize_on_device(y.dtype, args, rows, stream());
  }

  void batch_norm_grad(BatchNormGradArgs args, const BatchSaved& saved, bool training, void* dweight,
                       void* dbias, Index rows, const View& x) const {
    const Index columns = args.columns, bytes = batch_norm_scratch_bytes(rows, columns);
    // Behind what the sums need there is room for what follows from them.
    const Scratch scratch(stream(), bytes + 2 * columns * Index(sizeof(double)));
    if (training) {
      args.center = static_cast<char*>(scratch.get()) + bytes;
      args.slope = element_at(args.center, columns, DType::f64);
    }
    if (dweight || (training && args.dx))
      batch_norm_sums_on_device(
          x.dtype, args.dy, args.x, rows, columns, saved,
          {dweight, dbias, const_cast<void*>(args.center), const_cast<void*>(args.slope)}, scratch.get(),
          stream());
    if (!args.dx) return;
    if (training) return normalize_grad_on_device(x.dtype, args, rows, stream());
    normalize_on_device(x.dtype, constant_grad_args(args), rows, stream());
  }

  std::optional<ClassView> classes(const py::object& target, const ArgName& name) {
    const View view = any_view(target, name);
    if (view.kind != 'i' && view.kind != 'u') return std::nullopt;
    return ClassView{int64_array(view, name), view.size};
  }
  static void require_classes(const char*, const py::object&, const CrossEntropyArgs&) {}

  void cross_entropy(const CrossEntropyArgs& args, bool log_probabilities, Index rows, const View& input,
                     const View& out, Reduction reduction) const {
    const DType dtype = input.dtype;
    DeviceSum sum{reduction == Reduction::none ? nullptr : out.data};
    // Behind what the reductions need there is room for what their mean divides by.
    const Index bytes = sum_scratch_bytes(rows);
    const Scratch scratch(stream(), bytes + Index(sizeof(double)));
    if (reduction == Reduction::mean) {
      double* divisor = reinterpret_cast<double*>(static_cast<char*>(scratch.get()) + bytes);
      class_divisor_on_device(dtype, args, rows, divisor, scratch.get(), stream());
      sum.divisor_at = divisor;
    }
    cross_entropy_on_device(dtype, args, log_probabilities, rows, sum, scratch.get(), stream());
  }
};

template <Monoid kind>
void reduce(Device& device, const py::object& x_, const py::object& out_) {
  constexpr const char* kNames[] = {"sum", "abs_sum", "sum_squares", "abs_max"};
  const char* call = kNames[int(kind)];
  const DeviceView x = dense_input(device, x_, {call, "x"});
  double* out = const_cast<double*>(one_double(device, out_, {call, "out"}, true));
  const Scratch scratch(device.stream(), sum_scratch_bytes(x.size));
  reduce_on_device(x.dtype, kind, x.data, x.size, out, scratch.get(), device.stream());
}

void dot(Device& device, const py::object& x_, const py::object& y_, const py::object& out_) {
  const ArgName x_name{"dot", "x"};
  const DeviceView x = dense_input(device, x_, x_name), y = like(device, y_, {"dot", "y"}, x, x_name);
  double* out = const_cast<double*>(one_double(device, out_, {"dot", "out"}, true));
  const Scratch scratch(device.stream(), sum_scratch_bytes(x.size));
  dot_on_device(x.dtype, x.data, y.data, x.size, out, scratch.get(), device.stream());
}

// The type of an array's elements for a copy.
ItemType item_type(const DeviceView& view, const ArgName& name) {
  if (view.kind == 'f' || view.kind == 'V') return ItemType(int(view.dtype));
  if (view.kind == 'b') return ItemType::u8;
  constexpr ItemType kSigned[] = {ItemType::i8, ItemType::i16, ItemType::i32, ItemType::i64};
  constexpr ItemType kUnsigned[] = {ItemType::u8, ItemType::u16, ItemType::u32, ItemType::u64};
  for (int i = 0; i < 4; ++i) {
    if (view.item == Index(1) << i && view.kind == 'i') return kSigned[i];
    if (view.item == Index(1) << i && view.kind == 'u') return kUnsigned[i];
  }
  throw py::type_error(name.prefix() + " is " + element_name(view) + ", which cannot be copied");
}

// The memory of an array of any elements.
Extent memory(const DeviceView& view, const ArgName& name) {
  const char *begin = static_cast<const char*>(view.data), *end = begin + (view.size ? view.item : 0);
  for (int d = 0; view.size && d < view.ndim; ++d)
    (view.strides[d] < 0 ? begin : end) += (view.shape[d] - 1) * view.strides[d];
  return {begin, end, name};
}

// In elements; their alignment is that of the strides too.
Index stride(const DeviceView& view, int axis, const ArgName& name) {
  if (view.strides[axis] % view.item != 0)
    throw py::value_error(name.prefix() + " has strides that are not multiples of its items");
  return view.strides[axis] / view.item;
}

void copy(Device& device, const py::object& from_, const py::object& to_) {
  const ArgName from_name{"copy", "x"}, to_name{"copy", "out"};
  const DeviceView from = device.any_view(from_, from_name), to = device.any_view(to_, to_name);
  require_same_shape(to, to_name, from, from_name);
  if (!to.writeable) throw py::value_error(to_name.prefix() + " is read-only");
  DeviceCopy args{from.data, to.data, item_type(from, from_name), item_type(to, to_name), from.ndim, {},
                  {},        {}};
  const bool number = int(args.to_type) < kDTypes;
  const bool integers = args.to_type == ItemType::i64 && int(args.from_type) >= kDTypes;
  if (!number && !integers)
    throw py::type_error(to_name.prefix() + " is " + element_name(to) + ", x is " + element_name(from) +
                         ": copies are to floating-point numbers, and of integers to int64");
  require_apart(memory(to, to_name), memory(from, from_name), false);
  for (int d = 0; d < from.ndim; ++d) {
    args.shape[d] = from.shape[d];
    args.from_strides[d] = stride(from, d, from_name);
    args.to_strides[d] = stride(to, d, to_name);
  }
  copy_on_device(args, device.stream());
}

// out[i] = x[order[first + i]]; without an order x[first + i].
void gather_rows(Device& device, const py::object& x_, const py::object& order_, const py::object& first_,
                 const py::object& out_) {
  const ArgName x_name{"gather_rows", "x"}, out_name{"gather_rows", "out"};
  const DeviceView x = device.any_view(x_, x_name), out = device.any_view(out_, out_name);
  for (const auto& [view, name] : {std::pair(&x, &x_name), std::pair(&out, &out_name)})
    if (!view->c_contiguous) throw py::value_error(name->prefix() + " is not C-contiguous");
  if (!out.writeable) throw py::value_error(out_name.prefix() + " is read-only");
  if (x.kind != out.kind || x.item != out.item)
    throw py::type_error(out_name.prefix() + " is " + element_name(out) + ", x is " + element_name(x));
  if (x.ndim < 1 || x.ndim != out.ndim || !std::equal(x.shape + 1, x.shape + x.ndim, out.shape + 1))
    throw py::value_error(out_name.prefix() + " has shape " + shape_text(out) + ", x has shape " +
                          shape_text(x) + ": rows have to be alike");
  require_apart(memory(out, out_name), memory(x, x_name), false);
  const auto indices = [&](const py::object& object, const char* argument) -> const Index* {
    if (object.is_none()) return nullptr;
    const ArgName name{"gather_rows", argument};
    return int64_array(device.any_view(object, name), name);
  };
  const Index *order = indices(order_, "order"), *first = indices(first_, "first");
  Index row_bytes = x.item;
  for (int d = 1; d < x.ndim; ++d) row_bytes *= x.shape[d];
  gather_rows_on_device(x.data, row_bytes, order, first, out.shape[0], out.data, device.stream());
}

struct DeviceBinder {
  py::module_& m;

  // The stream is the last argument.
  template <class... A, class... E>
  void def(const char* name, void (*function)(Device&, A...), const E&... extra) const {
    m.def(
        name,
        [function](A... args, std::uintptr_t stream) {
          Device device(stream);
          function(device, args...);
        },
        extra..., py::arg("stream"));
  }
};

}  // namespace

void bind_cuda_kernels(py::module_& m) {
  using py::arg;
  const DeviceBinder binder{m};
  bind_checked<Device>(binder);
  bind_batch_norm<Device>(binder);
  binder.def("sum", &reduce<Monoid::sum>, "out: one float64.", arg("x"), arg("out"));
  binder.def("abs_sum", &reduce<Monoid::abs_sum>, "out: one float64.", arg("x"), arg("out"));
  binder.def("sum_squares", &reduce<Monoid::sum_squares>, "out: one float64.", arg("x"), arg("out"));
  binder.def("abs_max", &reduce<Monoid::abs_max>, "out: one float64.", arg("x"), arg("out"));
  binder.def("dot", &dot, "out: one float64.", arg("x"), arg("y"), arg("out"));
  binder.def("copy", &copy, "out = x, of any strides and of another dtype.", arg("x"), arg("out"));
  binder.def("gather_rows", &gather_rows,
             "out[i] = x[order[first + i]], or x[first + i] without an order; none of the rows is checked.",
             arg("x"), arg("order"), arg("first"), arg("out"));
}

}  // namespace fastopt
