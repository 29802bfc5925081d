// Matrix products and linear layers over device arrays: the checks of the CPU's, then the gemm driver on the
// caller's stream. Their results are those of `linear` in _core up to the order of sums.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>

#include "bindings/cuda_modules.hpp"
#include "bindings/device_arrays.hpp"
#include "bindings/gil.hpp"
#include "bindings/linear.hpp"
#include "cuda/cublaslt.hpp"
#include "cuda/gemm.hpp"
#include "cuda/gemm_epilogue.hpp"

namespace fastopt {
namespace {

using PrecisionName = std::optional<std::string>;

constexpr const char* kPrecisions[] = {"ieee", "tf32", "bf16", "f16"};

struct DeviceProduct {
  using View = DeviceView;
  DeviceCall& call;
  Precision precision;

  View view(py::handle object, const ArgName& name) const { return call.view(object, name); }
  // An array of bfloat16 is rounded to bfloat16 anyway.
  void require_factors(const View& a, const ArgName& name) const {
    const bool has_it = (precision == Precision::bf16 && a.dtype == DType::bf16) ||
                        (precision == Precision::f16 && a.dtype == DType::f16);
    if (precision == Precision::ieee || a.dtype == DType::f32 || has_it) return;
    constexpr const char* kNames[] = {"ieee", "tf32", "bfloat16", "float16"};
    throw py::value_error(name.prefix() + " is " + dtype_name(a.dtype) + ", a product in " +
                          kNames[int(precision)] + " takes float32");
  }
};

// The arguments of a call on a stream.
class DeviceArguments {
 public:
  using Arg = Arguments<DeviceProduct>::Arg;

  DeviceArguments(const char* name, const PrecisionName& precision, std::uintptr_t stream)
      : call_(stream), checked_(name, {call_, precision_of(name, precision)}) {}

  Arguments<DeviceProduct>* operator->() { return &checked_; }
  CudaStream stream() const { return call_.stream(); }

  // An operand. What lies in neither of the two orders that cuBLASLt reads is to be copied first.
  Arg factor(const py::object& object, const char* argument) {
    const Arg a = checked_.matrix(object, argument);
    if (a.view.ndim >= 2 && a.view.size > 0 && !is_ordered(a, -2, -1) && !is_ordered(a, -1, -2))
      throw py::value_error(a.name.prefix() + " has no rows or columns of adjacent elements; pass a copy");
    return a;
  }

  DeviceGemm product(Index m, Index n, Index k, const Operand& a, const Operand& b) const {
    DeviceGemm args;
    args.m = m, args.n = n, args.k = k;
    args.a = a, args.b = b;
    args.c = nullptr, args.c_row = n;
    args.precision = checked_.call().precision;
    return args;
  }

  void run(const DeviceGemm& args) const {
    const DType dtype = checked_.dtype();
    const Scratch scratch(stream(), gemm_scratch_bytes(dtype, args));
    gemm_on_device(dtype, args, scratch.get(), stream());
  }

 private:
  static bool is_ordered(const Arg& a, int outer, int inner) {
    return (a.shape(inner) <= 1 || a.stride(inner) == 1) &&
           (a.shape(outer) <= 1 || a.stride(outer) >= a.shape(inner));
  }

  DeviceCall call_;
  Arguments<DeviceProduct> checked_;
};
using Array = DeviceArguments::Arg;

// Rows that go backwards are the CPU's alone.
bool set_device_output(DeviceGemm& args, const Array& out, bool may_turn) {
  const bool turned = set_output(args, out, may_turn);
  if (out.view.size > 0 && args.c_row < args.n)
    throw py::value_error(out.name.prefix() + " has no rows " + (may_turn ? "or columns " : "") +
                          "of adjacent elements");
  return turned;
}

// out = x y + beta out over matrices of one array each, or many with the same leading axes.
void matmul(const py::object& x_, const py::object& y_, const py::object& out_,
            const PrecisionName& precision, std::uintptr_t stream, double beta) {
  DeviceArguments arguments("matmul", precision, stream);
  const Array x = arguments.factor(x_, "x"), y = arguments.factor(y_, "y");
  const Array out = arguments->output(out_, "out");
  require_product(x, y, out);
  if (x.view.ndim > 2) require_dense(out.view, out.name, true);
  arguments->require_apart();
  DeviceGemm args = arguments.product(x.shape(-2), y.shape(-1), x.shape(-1), x.operand(), y.operand());
  args.beta = beta;
  set_device_output(args, out, true);
  if (out.view.size == 0) return;
  const ReleasedGil release;
  const Index count = out.view.size / (args.m * args.n);
  for (Index index = 0; index < count; ++index) {
    DeviceGemm one = args;
    one.a.data = moved(args.a.data, batch_offset(x.view, index));
    one.b.data = moved(args.b.data, batch_offset(y.view, index));
    one.c = moved(args.c, batch_offset(out.view, index));
    arguments.run(one);
  }
}

// All elements 0, or those of `rows`.
void overwrite(DType dtype, const DeviceGemm& args, const void* rows, CudaStream stream) {
  if (args.m * args.n == 0) return;
  DeviceGemm nothing = args;
  nothing.beta = 0.0;
  nothing.epilogue = {};
  scale_on_device(dtype, nothing, stream);
  if (rows) finish_on_device(dtype, nothing, stream, rows);
}

// out = residual + residual_scale * dropout(act(x w^T + bias)). kept_input and kept_output receive what the
// activation sees and returns.
void linear(const py::object& x_, const py::object& w_, const py::object& bias_, const std::string& name,
            const py::tuple& params, double p, std::uint64_t seed, std::uint64_t offset,
            const py::object& residual_, double residual_scale, const py::object& kept_input_,
            const py::object& kept_output_, const py::object& out_, const PrecisionName& precision,
            std::uintptr_t stream) {
  const std::optional<Chosen> activation = choose_activation(name, params);
  DeviceArguments arguments("linear", precision, stream);
  const Array x = arguments.factor(x_, "input"), w = arguments.factor(w_, "weight");
  require_layer(x, w);
  const Index m = x.shape(0), n = w.shape(0);
  DeviceGemm args = arguments.product(m, n, x.shape(1), x.operand(), transposed(w.operand()));
  Epilogue& epilogue = args.epilogue;
  epilogue.bias = arguments->dense(bias_, "bias", -1, n);
  epilogue.residual = arguments->dense(residual_, "residual", m, n);
  epilogue.residual_scale = residual_scale;
  epilogue.kept_input = arguments->dense_output(kept_input_, "kept_input", m, n);
  epilogue.kept_output = arguments->dense_output(kept_output_, "kept_output", m, n);
  set_device_output(args, arguments->output(out_, "out", m, n), false);
  arguments->require_apart();
  if (activation) {
    epilogue.activation = activation->index;
    epilogue.params = activation->params;
  }
  set_dropout(epilogue, p, seed, offset);
  const ReleasedGil release;
  arguments.run(args);
  if (p == 1.0) overwrite(arguments->dtype(), args, epilogue.residual, arguments.stream());
}

// out = dropout(dy w) * act'(x, y): see linear_dx in _core.
void linear_dx(const py::object& dy_, const py::object& w_, const std::string& name, const py::tuple& params,
               const py::object& x_, const py::object& y_, double p, std::uint64_t seed, std::uint64_t offset,
               const py::object& out_, const PrecisionName& precision, std::uintptr_t stream) {
  const std::optional<Chosen> activation = choose_activation(name, params);
  DeviceArguments arguments("linear_dx", precision, stream);
  const Array dy = arguments.factor(dy_, "dy"), w = arguments.factor(w_, "w");
  require_layer_gradient(dy, w);
  const Index m = dy.shape(0), n = w.shape(1);
  DeviceGemm args = arguments.product(m, n, dy.shape(1), dy.operand(), w.operand());
  const void *x = arguments->dense(x_, "x", m, n), *y = arguments->dense(y_, "y", m, n);
  if (activation) set_gradient(args.epilogue, *activation, x, y);
  set_dropout(args.epilogue, p, seed, offset);
  set_device_output(args, arguments->output(out_, "out", m, n), false);
  arguments->require_apart();
  const ReleasedGil release;
  arguments.run(args);
  if (p == 1.0) overwrite(arguments->dtype(), args, nullptr, arguments.stream());
}

// dz = scale * dropout(dy) * act'(z, y), in one pass; dz may be dy.
struct LayerGrad {
  const void *dy, *z, *y;
  void* dz;
  Index m, n;
  double p, scale;
  std::uint64_t seed, offset;
  const std::optional<Chosen>& activation;

  void run(DType dtype, CudaStream stream) const {
    if (m * n == 0) return;
    DeviceGemm args;
    args.m = m, args.n = n;
    args.c = dz, args.c_row = n;
    if (p == 1.0) return overwrite(dtype, args, nullptr, stream);
    set_dropout(args.epilogue, p, seed, offset);
    if (scale != 1.0) {
      const Kept stays = kept(p);
      args.epilogue.dropout = true;
      args.epilogue.last_kept = stays.last;
      args.epilogue.kept_scale = stays.scale * scale;
    }
    if (activation) set_gradient(args.epilogue, *activation, z, y);
    finish_on_device(dtype, args, stream, dy);
  }
};

// The gradients of linear by z = x w^T + bias, x, w and bias: see linear_backward in _core.
void linear_backward(const py::object& dy_, const py::object& x_, const py::object& w_,
                     const std::string& name, const py::tuple& params, const py::object& z_,
                     const py::object& y_, double p, std::uint64_t seed, std::uint64_t offset, double scale,
                     const py::object& dz_, const py::object& dx_, const py::object& dw_,
                     const py::object& db_, bool add, const PrecisionName& precision, std::uintptr_t stream) {
  const std::optional<Chosen> activation = choose_activation(name, params);
  DeviceArguments arguments("linear_backward", precision, stream);
  const Array dy = arguments->matrix(dy_, "dy");
  require_dense(dy.view, dy.name, false);
  if (dy.view.ndim != 2)
    throw py::value_error(dy.name.prefix() + " has shape " + shape_text(dy.view) + ", expected two axes");
  const Index m = dy.shape(0), n = dy.shape(1);
  const void *z = arguments->dense(z_, "z", m, n), *y = arguments->dense(y_, "y", m, n);
  if (activation) {
    Epilogue needs;
    set_gradient(needs, *activation, z, y);
  }
  void* dz = dz_.is(dy_) ? dy.view.data : arguments->dense_output(dz_, "dz", m, n);
  if (dz_.is(dy_)) require_dense(dy.view, dy.name, true);
  const Operand g{dz ? dz : dy.view.data, n, 1};
  DeviceGemm dx_args = arguments.product(m, 0, n, g, {}), dw_args = dx_args;
  bool dw_turned = false;
  if (!dx_.is_none()) {
    const Array w = arguments.factor(w_, "w");
    require_rows(w, n);
    dx_args = arguments.product(m, w.shape(1), n, g, w.operand());
    set_device_output(dx_args, arguments->output(dx_, "dx", m, dx_args.n), true);
  }
  if (!dw_.is_none()) {
    const Array x = arguments.factor(x_, "x");
    require_rows(x, m);
    dw_args = arguments.product(n, x.shape(1), m, transposed(g), x.operand());
    dw_args.beta = add ? 1.0 : 0.0;
    dw_turned = set_device_output(dw_args, arguments->output(dw_, "dw", n, dw_args.n), true);
  }
  void* db = arguments->dense_output(db_, "db", -1, n);
  arguments->require_apart();
  const DType dtype = arguments->dtype();
  // The product of dw sums dz on its way, unless they are to be added to what db has.
  const bool with_dw = db && !add && !dw_.is_none() && !dw_turned;
  if (with_dw) dw_args.a_sums = db;
  const ReleasedGil release;
  if (dz)
    LayerGrad{dy.view.data, z, y, dz, m, n, p, scale, seed, offset, activation}.run(dtype,
                                                                                    arguments.stream());
  if (!dx_.is_none()) arguments.run(dx_args);
  if (!dw_.is_none()) arguments.run(dw_args);
  if (!db || with_dw) return;
  const Scratch scratch(arguments.stream(), column_sums_scratch_bytes(m, n));
  column_sums_on_device(dtype, g.data, m, n, db, add, scratch.get(), arguments.stream());
}

}  // namespace

Precision precision_of(const char* call, const PrecisionName& name) {
  if (!name) return Precision::ieee;
  for (int p = 0; p < int(std::size(kPrecisions)); ++p)
    if (*name == kPrecisions[p]) return Precision(p);
  throw py::value_error(std::string(call) + ": precision is '" + *name +
                        "', expected one of ieee, tf32, bf16, f16");
}

void bind_cuda_linear(py::module_& m) {
  using py::arg;
  m.def("set_cublaslt_path", &lt::set_library_path, arg("path"),
        "Where cuBLASLt is, for the first product: the file of the nvidia-cublas wheel.");
  m.def("matmul", &matmul, arg("x"), arg("y"), arg("out"), arg("precision"), arg("stream"), arg("beta") = 0.0,
        "out = x y + beta out, of two axes or more; leading axes are equal.");
  m.def("linear", &linear, arg("input"), arg("weight"), arg("bias"), arg("activation"), arg("params"),
        arg("p"), arg("seed"), arg("offset"), arg("residual"), arg("residual_scale"), arg("kept_input"),
        arg("kept_output"), arg("out"), arg("precision"), arg("stream"),
        "out = residual + residual_scale * dropout(act(input weight^T + bias)).");
  m.def("linear_dx", &linear_dx, arg("dy"), arg("w"), arg("activation"), arg("params"), arg("x"), arg("y"),
        arg("p"), arg("seed"), arg("offset"), arg("out"), arg("precision"), arg("stream"),
        "out = dropout(dy w) * act'(x, y): the layer below's gradient by its pre-activation.");
  m.def("linear_backward", &linear_backward, arg("dy"), arg("x"), arg("w"), arg("activation"), arg("params"),
        arg("z"), arg("y"), arg("p"), arg("seed"), arg("offset"), arg("scale"), arg("dz"), arg("dx"),
        arg("dw"), arg("db"), arg("add"), arg("precision"), arg("stream"),
        "The gradients of linear by z = input weight^T + bias, input, weight and bias.");
}

}  // namespace fastopt
