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

#include "bindings/arrays.hpp"
#include "bindings/formulas.hpp"
#include "bindings/modules.hpp"
#include "core/chunks.hpp"
#include "core/column_sums.hpp"
#include "core/dispatch.hpp"
#include "core/dropout.hpp"
#include "core/gemm.hpp"

namespace fastopt {
namespace {

struct Argument {
  ArrayView view;
  ArgName name;

  Index shape(int axis) const { return view.shape[axis < 0 ? view.ndim + axis : axis]; }
  // In elements; 0 along an axis where none is taken.
  Index stride(int axis) const {
    const int d = axis < 0 ? view.ndim + axis : axis;
    return view.shape[d] > 1 ? view.strides[d] / item_bytes(view.dtype) : 0;
  }
  Operand operand() const { return {view.data, stride(-2), stride(-1)}; }
};

Operand transposed(const Operand& a) { return {a.data, a.col, a.row}; }

// The arguments of one call. All have one dtype; outputs are apart from all others.
class Arguments {
 public:
  Arguments(const char* call, bool bf16) : call_(call), bf16_(bf16) {}

  // An operand, of any strides.
  Argument matrix(const py::object& object, const char* argument) {
    const Argument a = take(object, argument);
    if (!a.view.aligned)
      throw py::value_error(a.name.prefix() + " is not aligned to its " + dtype_name(a.view.dtype) +
                            " items");
    inputs_.push_back(a);
    return a;
  }

  // Null for None. Dense, of the shape (m, n), or (n,) where m is negative.
  const void* dense(const py::object& object, const char* argument, Index m, Index n) {
    if (object.is_none()) return nullptr;
    inputs_.push_back(shaped(object, argument, m, n));
    require_dense(inputs_.back().view, inputs_.back().name, false);
    return inputs_.back().view.data;
  }
  void* dense_output(const py::object& object, const char* argument, Index m, Index n) {
    if (object.is_none()) return nullptr;
    outputs_.push_back(shaped(object, argument, m, n));
    require_dense(outputs_.back().view, outputs_.back().name, true);
    return outputs_.back().view.data;
  }

  // An output whose layout `set_output` checks.
  Argument output(const py::object& object, const char* argument) {
    const Argument a = take(object, argument);
    if (!a.view.aligned)
      throw py::value_error(a.name.prefix() + " is not aligned to its " + dtype_name(a.view.dtype) +
                            " items");
    if (!a.view.writeable) throw py::value_error(a.name.prefix() + " is read-only");
    outputs_.push_back(a);
    return a;
  }
  Argument output(const py::object& object, const char* argument, Index m, Index n) {
    require_shape(take(object, argument), m, n);
    return output(object, argument);
  }

  void require_apart() const {
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      for (const Argument& input : inputs_) require_apart(outputs_[i], input);
      for (std::size_t j = 0; j < i; ++j) require_apart(outputs_[i], outputs_[j]);
    }
  }

  DType dtype() const { return first_->view.dtype; }

 private:
  Argument take(const py::object& object, const char* argument) {
    const ArgName name{call_, argument};
    const Argument a{array_view(object, name), name};
    if (first_) {
      require_same_dtype(a.view, name, first_->view, first_->name);
    } else {
      require_computed(a.view, name);
      if (bf16_ && a.view.dtype != DType::f32)
        throw py::value_error(name.prefix() + " is float64, a product in bfloat16 takes float32");
      first_ = a;
    }
    return a;
  }

  Argument shaped(const py::object& object, const char* argument, Index m, Index n) {
    const Argument a = take(object, argument);
    require_shape(a, m, n);
    return a;
  }

  static void require_shape(const Argument& a, Index m, Index n) {
    const bool vector = m < 0;
    if (a.view.ndim == (vector ? 1 : 2) && a.shape(-1) == n && (vector || a.shape(0) == m)) return;
    throw py::value_error(a.name.prefix() + " has shape " + shape_text(a.view) + ", expected (" +
                          (vector ? "" : std::to_string(m) + ", ") + std::to_string(n) +
                          (vector ? ",)" : ")"));
  }

  static void require_apart(const Argument& a, const Argument& b) {
    if (!side_by_side(a, b)) fastopt::require_apart(a.view, a.name, b.view, b.name, false);
  }

  // The larger stride of a matrix and what lies between its steps, in bytes.
  static std::pair<Index, Index> pitch_and_width(const Argument& a) {
    const Index item = item_bytes(a.view.dtype);
    const int outer = std::abs(a.stride(0)) >= std::abs(a.stride(1)) ? 0 : 1;
    return {std::abs(a.stride(outer)) * item,
            (std::max<Index>(a.shape(1 - outer), 1) - 1) * std::abs(a.stride(1 - outer)) * item + item};
  }

  // Whether two matrices are parts of the rows (or columns) of one array and share none of its elements.
  static bool side_by_side(const Argument& a, const Argument& b) {
    if (a.view.ndim != 2 || b.view.ndim != 2) return false;
    const auto [pitch, a_width] = pitch_and_width(a);
    const auto [b_pitch, b_width] = pitch_and_width(b);
    if (pitch == 0 || pitch != b_pitch) return false;
    const Index apart =
        ((extent(b.view, b.name).begin - extent(a.view, a.name).begin) % pitch + pitch) % pitch;
    return apart >= a_width && apart + b_width <= pitch;
  }

  const char* call_;
  bool bf16_;
  std::optional<Argument> first_;
  std::vector<Argument> inputs_, outputs_;
};

// Points the product at its output. One whose columns are of adjacent elements gets C^T = B^T A^T.
void set_output(GemmArgs& args, const Argument& out, bool may_turn) {
  const Index row = out.stride(-2), col = out.stride(-1);
  args.c = out.view.data;
  args.c_row = args.n;
  if (out.view.size == 0) return;
  if (may_turn && col != 1 && args.n > 1 && (row == 1 || args.m == 1)) {
    std::swap(args.m, args.n);
    std::swap(args.a, args.b);
    args.a = transposed(args.a);
    args.b = transposed(args.b);
    args.c_row = args.m > 1 ? col : args.n;
  } else if (col == 1 || args.n == 1) {
    args.c_row = args.m > 1 ? row : args.n;
  } else {
    throw py::value_error(out.name.prefix() + " has no rows " + (may_turn ? "or columns " : "") +
                          "of adjacent elements");
  }
  if (std::abs(args.c_row) < args.n) throw py::value_error(out.name.prefix() + " overlaps itself in memory");
}

// Element `index` of the leading axes, counted in C order: its distance from the first in bytes.
Index batch_offset(const ArrayView& view, Index index) {
  Index bytes = 0;
  for (int d = view.ndim - 3; d >= 0; --d) {
    bytes += index % view.shape[d] * view.strides[d];
    index /= view.shape[d];
  }
  return bytes;
}

template <class P>
P* moved(P* data, Index bytes) {
  return reinterpret_cast<P*>(reinterpret_cast<std::uintptr_t>(data) + std::uintptr_t(bytes));
}

// out = x y + beta out over matrices of one array each, or many with the same leading axes.
void matmul(const py::object& x_, const py::object& y_, const py::object& out_, double beta, bool bf16) {
  Arguments arguments("matmul", bf16);
  const Argument x = arguments.matrix(x_, "x"), y = arguments.matrix(y_, "y");
  const Argument out = arguments.output(out_, "out");
  const int ndim = x.view.ndim;
  const auto leads_like_x = [&](const Argument& a) {
    return a.view.ndim == ndim && std::equal(a.view.shape, a.view.shape + ndim - 2, x.view.shape);
  };
  if (ndim < 2 || !leads_like_x(y) || x.shape(-1) != y.shape(-2))
    throw py::value_error(y.name.prefix() + " has shape " + shape_text(y.view) + ", x has shape " +
                          shape_text(x.view));
  if (!leads_like_x(out) || out.shape(-2) != x.shape(-2) || out.shape(-1) != y.shape(-1))
    throw py::value_error(out.name.prefix() + " has shape " + shape_text(out.view) + ", x has shape " +
                          shape_text(x.view) + " and y " + shape_text(y.view));
  if (ndim > 2) require_dense(out.view, out.name, true);
  arguments.require_apart();
  GemmArgs args{x.shape(-2), y.shape(-1), x.shape(-1), x.operand(), y.operand(), nullptr, 0, beta, bf16};
  set_output(args, out, true);
  if (out.view.size == 0) return;
  const DType dtype = arguments.dtype();
  const py::gil_scoped_release release;
  if (ndim == 2) return gemm(dtype, args);
  const Index count = out.view.size / (args.m * args.n);
  const GemmTasks tasks = cut_gemm(dtype, args, count < num_threads() ? num_threads() : 1);
  parallel_for(count * tasks.count, out.view.size * args.k >= 64 * kSerialElements, [&](Index task) {
    const Index index = task / tasks.count;
    GemmArgs one = args;
    one.a.data = moved(args.a.data, batch_offset(x.view, index));
    one.b.data = moved(args.b.data, batch_offset(y.view, index));
    one.c = moved(args.c, batch_offset(out.view, index));
    run_gemm_task(dtype, one, tasks, task % tasks.count);
  });
}

// An empty name stands for no activation.
std::optional<Chosen> choose_activation(const std::string& name, const py::tuple& params) {
  if (name.empty()) return std::nullopt;
  return choose("activation", kActivations, name, params);
}

void set_dropout(Epilogue& epilogue, double p, std::uint64_t seed, std::uint64_t offset) {
  if (p <= 0.0 || p >= 1.0) return;
  const Kept stays = kept(p);
  epilogue.dropout = true;
  epilogue.seed = seed;
  epilogue.offset = offset;
  epilogue.last_kept = stays.last;
  epilogue.kept_scale = stays.scale;
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
  Arguments arguments("linear", bf16);
  const Argument x = arguments.matrix(x_, "input"), w = arguments.matrix(w_, "weight");
  if (x.view.ndim != 2 || w.view.ndim != 2 || x.shape(1) != w.shape(1))
    throw py::value_error(x.name.prefix() + " has shape " + shape_text(x.view) + ", weight has shape " +
                          shape_text(w.view));
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
  const py::gil_scoped_release release;
  gemm(arguments.dtype(), args);
  if (p == 1.0) overwrite_rows(arguments.dtype(), args, epilogue.residual);
}

// The factor act'(x or y) of a gradient, whichever the formula reads.
void set_gradient(Epilogue& epilogue, const Chosen& activation, const void* x, const void* y) {
  const auto require = [&](bool needed, const void* data, const char* argument) {
    if (needed && !data)
      throw py::type_error(std::string(activation.info.name) + ": the gradient needs " + argument +
                           ", got None");
  };
  require(activation.info.grad_needs_x, x, "x");
  require(activation.info.grad_needs_y, y, "y");
  epilogue.gradient = activation.index;
  epilogue.params = activation.params;
  epilogue.x = x;
  epilogue.y = y;
}

// out = dropout(dy w) * act'(x, y): the gradient by what the layer below gave its activation, where that
// layer's dropout is the one of (p, seed, offset).
void linear_dx(const py::object& dy_, const py::object& w_, const std::string& name, const py::tuple& params,
               const py::object& x_, const py::object& y_, double p, std::uint64_t seed, std::uint64_t offset,
               const py::object& out_, bool bf16) {
  const std::optional<Chosen> activation = choose_activation(name, params);
  Arguments arguments("linear_dx", bf16);
  const Argument dy = arguments.matrix(dy_, "dy"), w = arguments.matrix(w_, "w");
  if (dy.view.ndim != 2 || w.view.ndim != 2 || dy.shape(1) != w.shape(0))
    throw py::value_error(dy.name.prefix() + " has shape " + shape_text(dy.view) + ", w has shape " +
                          shape_text(w.view));
  const Index m = dy.shape(0), n = w.shape(1);
  GemmArgs args{m, n, dy.shape(1), dy.operand(), w.operand(), nullptr, 0, 0.0, bf16};
  const void *x = arguments.dense(x_, "x", m, n), *y = arguments.dense(y_, "y", m, n);
  if (activation) set_gradient(args.epilogue, *activation, x, y);
  set_dropout(args.epilogue, p, seed, offset);
  set_output(args, arguments.output(out_, "out", m, n), false);
  arguments.require_apart();
  const py::gil_scoped_release release;
  gemm(arguments.dtype(), args);
  if (p == 1.0) overwrite_rows(arguments.dtype(), args, nullptr);
}

void require_rows(const Argument& a, Index rows) {
  if (a.view.ndim == 2 && a.shape(0) == rows) return;
  throw py::value_error(a.name.prefix() + " has shape " + shape_text(a.view) + ", expected " +
                        std::to_string(rows) + " rows");
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
  Arguments arguments("linear_backward", bf16);
  const Argument dy = arguments.matrix(dy_, "dy");
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
    const Argument w = arguments.matrix(w_, "w");
    require_rows(w, n);
    dx_args.n = w.shape(1);
    dx_args.b = w.operand();
    set_output(dx_args, arguments.output(dx_, "dx", m, dx_args.n), true);
  }
  if (!dw_.is_none()) {
    const Argument x = arguments.matrix(x_, "x");
    require_rows(x, m);
    dw_args = {n, x.shape(1), m, transposed(g), x.operand(), nullptr, 0, add ? 1.0 : 0.0, bf16};
    set_output(dw_args, arguments.output(dw_, "dw", n, dw_args.n), true);
  }
  void* db = arguments.dense_output(db_, "db", -1, n);
  arguments.require_apart();
  const DType dtype = arguments.dtype();
  const py::gil_scoped_release release;
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
