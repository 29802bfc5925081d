// Matrix products and linear layers for Python: checks, then the gemm driver without the GIL. What a product
// reads may have any strides; what it writes has rows of adjacent elements, or columns where there is no
// epilogue.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/gil.hpp"
#include "bindings/linear.hpp"
#include "bindings/modules.hpp"
#include "core/chunks.hpp"
#include "core/column_sums.hpp"
#include "core/dispatch.hpp"
#include "core/gemm.hpp"

namespace fastopt {
namespace {

struct NumpyProduct {
  using View = ArrayView;
  bool bf16;

  View view(py::handle object, const ArgName& name) const { return array_view(object, name); }
  void require_factors(const View& a, const ArgName& name) const {
    require_computed(a, name);
    if (bf16 && a.dtype != DType::f32)
      throw py::value_error(name.prefix() + " is float64, a product in bfloat16 takes float32");
  }
};
using NumpyArguments = Arguments<NumpyProduct>;
using Array = NumpyArguments::Arg;

// out = x y + beta out over matrices of one array each, or many with the same leading axes.
void matmul(const py::object& x_, const py::object& y_, const py::object& out_, double beta, bool bf16) {
  NumpyArguments arguments("matmul", {bf16});
  const Array x = arguments.matrix(x_, "x"), y = arguments.matrix(y_, "y");
  const Array out = arguments.output(out_, "out");
  require_product(x, y, out);
  const int ndim = x.view.ndim;
  if (ndim > 2) require_dense(out.view, out.name, true);
  arguments.require_apart();
  GemmArgs args{x.shape(-2), y.shape(-1), x.shape(-1), x.operand(), y.operand(), nullptr, 0, beta, bf16};
  set_output(args, out, true);
  if (out.view.size == 0) return;
  const DType dtype = arguments.dtype();
  const ReleasedGil release;
  if (ndim == 2) return gemm(dtype, args);
  const Index count = out.view.size / (args.m * args.n);
  const GemmTasks tasks = cut_gemm(dtype, args, count < num_threads() ? num_threads() : 1);
  parallel_for(count * tasks.count, out.view.size * args.k >= 64 * kSerialElements, [&](Index task) {
    const Index index = task / tasks.count;
    GemmArgs one = args;
    one.a.data = moved(args.a.data, batch_offset(x.view, index));
    one.b.data = moved(args.b.data, batch_offset(y.view, index));
    one.c = moved(args.c, batch_offset(out.view, index));
    one.zeros = kernels().gemm[int(dtype)].find_zeros(one);
    run_gemm_task(dtype, one, tasks, task % tasks.count);
  });
}

// What is left where all elements are dropped.
void overwrite_rows(DType dtype, const GemmArgs& args, const void* rows) {
  const Index item = item_bytes(dtype), bytes = args.n * item;
  for (Index i = 0; i < args.m; ++i) {
    void* row = moved(args.c, i * args.c_row * item);
    if (rows) {
      std::memcpy(row, moved(rows, i * bytes), std::size_t(bytes));
    } else {
      std::memset(row, 0, std::size_t(bytes));
    }
  }
}

// out = residual + residual_scale * dropout(act(x w^T + bias)). kept_input and kept_output receive what the
// activation sees and returns.
void linear(const py::object& x_, const py::object& w_, const py::object& bias_, const std::string& name,
            const py::tuple& params, double p, std::uint64_t seed, std::uint64_t offset,
            const py::object& residual_, double residual_scale, const py::object& kept_input_,
            const py::object& kept_output_, const py::object& out_, bool bf16) {
  const std::optional<Chosen> activation = choose_activation(name, params);
  NumpyArguments arguments("linear", {bf16});
  const Array x = arguments.matrix(x_, "input"), w = arguments.matrix(w_, "weight");
  require_layer(x, w);
  const Index m = x.shape(0), n = w.shape(0);
  GemmArgs args{m, n, x.shape(1), x.operand(), transposed(w.operand()), nullptr, 0, 0.0, bf16};
  Epilogue& epilogue = args.epilogue;
  epilogue.bias = arguments.dense(bias_, "bias", -1, n);
  epilogue.residual = arguments.dense(residual_, "residual", m, n);
  epilogue.residual_scale = residual_scale;
  epilogue.kept_input = arguments.dense_output(kept_input_, "kept_input", m, n);
  epilogue.kept_output = arguments.dense_output(kept_output_, "kept_output", m, n);
  set_output(args, arguments.output(out_, "out", m, n), false);
  arguments.require_apart();
  if (activation) {
    epilogue.activation = activation->index;
    epilogue.params = activation->params;
  }
  set_dropout(epilogue, p, seed, offset);
  const ReleasedGil release;
  gemm(arguments.dtype(), args);
  if (p == 1.0) overwrite_rows(arguments.dtype(), args, epilogue.residual);
}

// out = dropout(dy w) * act'(x, y): the gradient by what the layer below gave its activation, where that
// layer's dropout is the one of (p, seed, offset).
void linear_dx(const py::object& dy_, const py::object& w_, const std::string& name, const py::tuple& params,
               const py::object& x_, const py::object& y_, double p, std::uint64_t seed, std::uint64_t offset,
               const py::object& out_, bool bf16) {
  const std::optional<Chosen> activation = choose_activation(name, params);
  NumpyArguments arguments("linear_dx", {bf16});
  const Array dy = arguments.matrix(dy_, "dy"), w = arguments.matrix(w_, "w");
  require_layer_gradient(dy, w);
  const Index m = dy.shape(0), n = w.shape(1);
  GemmArgs args{m, n, dy.shape(1), dy.operand(), w.operand(), nullptr, 0, 0.0, bf16};
  const void *x = arguments.dense(x_, "x", m, n), *y = arguments.dense(y_, "y", m, n);
  if (activation) set_gradient(args.epilogue, *activation, x, y);
  set_dropout(args.epilogue, p, seed, offset);
  set_output(args, arguments.output(out_, "out", m, n), false);
  arguments.require_apart();
  const ReleasedGil release;
  gemm(arguments.dtype(), args);
  if (p == 1.0) overwrite_rows(arguments.dtype(), args, nullptr);
}

// dz = scale * dropout(dy) * act'(z, y), in one pass; dz may be dy.
struct LayerGrad {
  const void *dy, *z, *y;
  void* dz;
  Index size;
  double p, scale;
  std::uint64_t seed, offset;
  const std::optional<Chosen>& activation;

  void run(DType dtype) const {
    const ElementwiseKernels& kernel = kernels().elementwise[int(dtype)];
    const Kept stays = kept(p);
    const DropoutArgs dropped{dy, dz, seed, offset, stays.last, stays.scale * scale};
    const bool changed = p > 0.0 || scale != 1.0 || !activation;
    const ActivationGradArgs grad{activation ? activation->index : -1,
                                  activation ? activation->params : nullptr,
                                  changed ? dz : dy,
                                  z,
                                  y,
                                  dz};
    const Index item = item_bytes(dtype);
    run_chunks(size, kChunk, size, [&](Index begin, Index end) {
      if (p == 1.0) {
        std::memset(moved(dz, begin * item), 0, std::size_t((end - begin) * item));
        return;
      }
      if (changed) kernel.dropout(dropped, begin, end);
      if (activation) kernel.activation_grad(grad, begin, end);
    });
  }
};

// The gradients of out = residual_scale * dropout(act(z)), z = x w^T + bias, by z, x, w and bias; None for
// those that are not wanted. dz may be dy, and is None where it would be dy. With `add`, dw and db get their
// gradients added. z and y are what `linear` kept.
void linear_backward(const py::object& dy_, const py::object& x_, const py::object& w_,
                     const std::string& name, const py::tuple& params, const py::object& z_,
                     const py::object& y_, double p, std::uint64_t seed, std::uint64_t offset, double scale,
                     const py::object& dz_, const py::object& dx_, const py::object& dw_,
                     const py::object& db_, bool add, bool bf16) {
  const std::optional<Chosen> activation = choose_activation(name, params);
  NumpyArguments arguments("linear_backward", {bf16});
  const Array dy = arguments.matrix(dy_, "dy");
  require_dense(dy.view, dy.name, false);
  if (dy.view.ndim != 2)
    throw py::value_error(dy.name.prefix() + " has shape " + shape_text(dy.view) + ", expected two axes");
  const Index m = dy.shape(0), n = dy.shape(1);
  const void *z = arguments.dense(z_, "z", m, n), *y = arguments.dense(y_, "y", m, n);
  if (activation) {
    Epilogue needs;
    set_gradient(needs, *activation, z, y);
  }
  void* dz = dz_.is(dy_) ? dy.view.data : arguments.dense_output(dz_, "dz", m, n);
  if (dz_.is(dy_)) require_dense(dy.view, dy.name, true);
  const Operand g{dz ? dz : dy.view.data, n, 1};
  GemmArgs dx_args{m, 0, n, g, {}, nullptr, 0, 0.0, bf16}, dw_args = dx_args;
  if (!dx_.is_none()) {
    const Array w = arguments.matrix(w_, "w");
    require_rows(w, n);
    dx_args.n = w.shape(1);
    dx_args.b = w.operand();
    set_output(dx_args, arguments.output(dx_, "dx", m, dx_args.n), true);
  }
  if (!dw_.is_none()) {
    const Array x = arguments.matrix(x_, "x");
    require_rows(x, m);
    dw_args = {n, x.shape(1), m, transposed(g), x.operand(), nullptr, 0, add ? 1.0 : 0.0, bf16};
    set_output(dw_args, arguments.output(dw_, "dw", n, dw_args.n), true);
  }
  void* db = arguments.dense_output(db_, "db", -1, n);
  arguments.require_apart();
  const DType dtype = arguments.dtype();
  const ReleasedGil release;
  if (dz) LayerGrad{dy.view.data, z, y, dz, m * n, p, scale, seed, offset, activation}.run(dtype);
  if (!dx_.is_none()) gemm(dtype, dx_args);
  if (!dw_.is_none()) gemm(dtype, dw_args);
  if (db) column_sums(dtype, g.data, m, n, db, add);
}

}  // namespace

void bind_linear(py::module_& m) {
  using py::arg;
  m.def("matmul", &matmul, arg("x"), arg("y"), arg("out"), arg("beta"), arg("bf16"),
        "out = x y + beta out, of two axes or more; leading axes are equal.");
  m.def("linear", &linear, arg("input"), arg("weight"), arg("bias"), arg("activation"), arg("params"),
        arg("p"), arg("seed"), arg("offset"), arg("residual"), arg("residual_scale"), arg("kept_input"),
        arg("kept_output"), arg("out"), arg("bf16"),
        "out = residual + residual_scale * dropout(act(input weight^T + bias)).");
  m.def("linear_dx", &linear_dx, arg("dy"), arg("w"), arg("activation"), arg("params"), arg("x"), arg("y"),
        arg("p"), arg("seed"), arg("offset"), arg("out"), arg("bf16"),
        "out = dropout(dy w) * act'(x, y): the layer below's gradient by its pre-activation.");
  m.def("linear_backward", &linear_backward, arg("dy"), arg("x"), arg("w"), arg("activation"), arg("params"),
        arg("z"), arg("y"), arg("p"), arg("seed"), arg("offset"), arg("scale"), arg("dz"), arg("dx"),
        arg("dw"), arg("db"), arg("add"), arg("bf16"),
        "The gradients of linear by z = input weight^T + bias, input, weight and bias.");
}

}  // namespace fastopt
