// What the products and linear layers of _core and _cuda share: the checks of their arguments.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/formulas.hpp"
#include "core/dispatch.hpp"
#include "core/dropout.hpp"

namespace fastopt {

template <class View>
struct Argument {
  View view;
  ArgName name;

  Index shape(int axis) const { return view.shape[axis < 0 ? view.ndim + axis : axis]; }
  // In elements; 0 along an axis where none is taken.
  Index stride(int axis) const {
    const int d = axis < 0 ? view.ndim + axis : axis;
    return view.shape[d] > 1 ? view.strides[d] / item_bytes(view.dtype) : 0;
  }
  Operand operand() const { return {view.data, stride(-2), stride(-1)}; }
};

inline Operand transposed(const Operand& a) { return {a.data, a.col, a.row}; }

// The arguments of one call. All have one dtype; outputs are apart from all others. Call: how an argument is
// looked at; its `view` returns a Call::View, which is an ArrayView, and its `require_factors` refuses dtypes
// that such a call does not multiply.
template <class Call>
class Arguments {
 public:
  using Arg = Argument<typename Call::View>;

  Arguments(const char* name, Call call) : name_(name), call_(std::move(call)) {}

  const Call& call() const { return call_; }

  // An operand, of any strides.
  Arg matrix(const py::object& object, const char* argument) {
    const Arg a = take(object, argument);
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
  Arg output(const py::object& object, const char* argument) {
    const Arg a = take(object, argument);
    if (!a.view.aligned)
      throw py::value_error(a.name.prefix() + " is not aligned to its " + dtype_name(a.view.dtype) +
                            " items");
    if (!a.view.writeable) throw py::value_error(a.name.prefix() + " is read-only");
    outputs_.push_back(a);
    return a;
  }
  Arg output(const py::object& object, const char* argument, Index m, Index n) {
    require_shape(take(object, argument), m, n);
    return output(object, argument);
  }

  void require_apart() const {
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      for (const Arg& input : inputs_) require_apart(outputs_[i], input);
      for (std::size_t j = 0; j < i; ++j) require_apart(outputs_[i], outputs_[j]);
    }
  }

  DType dtype() const { return first_->view.dtype; }

 private:
  Arg take(const py::object& object, const char* argument) {
    const ArgName name{name_, argument};
    const Arg a{call_.view(object, name), name};
    if (first_) {
      require_same_dtype(a.view, name, first_->view, first_->name);
    } else {
      call_.require_factors(a.view, name);
      first_ = a;
    }
    return a;
  }

  Arg shaped(const py::object& object, const char* argument, Index m, Index n) {
    const Arg a = take(object, argument);
    require_shape(a, m, n);
    return a;
  }

  static void require_shape(const Arg& a, Index m, Index n) {
    const bool vector = m < 0;
    if (a.view.ndim == (vector ? 1 : 2) && a.shape(-1) == n && (vector || a.shape(0) == m)) return;
    throw py::value_error(a.name.prefix() + " has shape " + shape_text(a.view) + ", expected (" +
                          (vector ? "" : std::to_string(m) + ", ") + std::to_string(n) +
                          (vector ? ",)" : ")"));
  }

  static void require_apart(const Arg& a, const Arg& b) {
    if (!side_by_side(a, b)) fastopt::require_apart(a.view, a.name, b.view, b.name, false);
  }

  // The larger stride of a matrix and what lies between its steps, in bytes.
  static std::pair<Index, Index> pitch_and_width(const Arg& a) {
    const Index item = item_bytes(a.view.dtype);
    const int outer = std::abs(a.stride(0)) >= std::abs(a.stride(1)) ? 0 : 1;
    return {std::abs(a.stride(outer)) * item,
            (std::max<Index>(a.shape(1 - outer), 1) - 1) * std::abs(a.stride(1 - outer)) * item + item};
  }

  // Whether two matrices are parts of the rows (or columns) of one array and share none of its elements.
  static bool side_by_side(const Arg& a, const Arg& b) {
    if (a.view.ndim != 2 || b.view.ndim != 2) return false;
    const auto [pitch, a_width] = pitch_and_width(a);
    const auto [b_pitch, b_width] = pitch_and_width(b);
    if (pitch == 0 || pitch != b_pitch) return false;
    const Index apart =
        ((extent(b.view, b.name).begin - extent(a.view, a.name).begin) % pitch + pitch) % pitch;
    return apart >= a_width && apart + b_width <= pitch;
  }

  const char* name_;
  Call call_;
  std::optional<Arg> first_;
  std::vector<Arg> inputs_, outputs_;
};

// Points the product at its output. One whose columns are of adjacent elements gets C^T = B^T A^T; true then.
template <class View>
bool set_output(GemmArgs& args, const Argument<View>& out, bool may_turn) {
  const Index row = out.stride(-2), col = out.stride(-1);
  args.c = out.view.data;
  args.c_row = args.n;
  if (out.view.size == 0) return false;
  const bool turn = may_turn && col != 1 && args.n > 1 && (row == 1 || args.m == 1);
  if (turn) {
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
  return turn;
}

// Element `index` of the leading axes, counted in C order: its distance from the first in bytes.
inline Index batch_offset(const ArrayView& view, Index index) {
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

// ValueError unless out can hold x y, over matrices of one array each or many with the same leading axes.
template <class View>
void require_product(const Argument<View>& x, const Argument<View>& y, const Argument<View>& out) {
  const int ndim = x.view.ndim;
  const auto leads_like_x = [&](const Argument<View>& a) {
    return a.view.ndim == ndim && std::equal(a.view.shape, a.view.shape + ndim - 2, x.view.shape);
  };
  if (ndim < 2 || !leads_like_x(y) || x.shape(-1) != y.shape(-2))
    throw py::value_error(y.name.prefix() + " has shape " + shape_text(y.view) + ", x has shape " +
                          shape_text(x.view));
  if (!leads_like_x(out) || out.shape(-2) != x.shape(-2) || out.shape(-1) != y.shape(-1))
    throw py::value_error(out.name.prefix() + " has shape " + shape_text(out.view) + ", x has shape " +
                          shape_text(x.view) + " and y " + shape_text(y.view));
}

// An empty name stands for no activation.
inline std::optional<Chosen> choose_activation(const std::string& name, const py::tuple& params) {
  if (name.empty()) return std::nullopt;
  return choose("activation", kActivations, name, params);
}

inline void set_dropout(Epilogue& epilogue, double p, std::uint64_t seed, std::uint64_t offset) {
  if (p <= 0.0 || p >= 1.0) return;
  const Kept stays = kept(p);
  epilogue.dropout = true;
  epilogue.seed = seed;
  epilogue.offset = offset;
  epilogue.last_kept = stays.last;
  epilogue.kept_scale = stays.scale;
}

// The factor act'(x or y) of a gradient, whichever the formula reads.
inline void set_gradient(Epilogue& epilogue, const Chosen& activation, const void* x, const void* y) {
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

template <class View>
void require_rows(const Argument<View>& a, Index rows) {
  if (a.view.ndim == 2 && a.shape(0) == rows) return;
  throw py::value_error(a.name.prefix() + " has shape " + shape_text(a.view) + ", expected " +
                        std::to_string(rows) + " rows");
}

// ValueError unless x w^T, dy w can be multiplied.
template <class View>
void require_layer(const Argument<View>& x, const Argument<View>& w) {
  if (x.view.ndim != 2 || w.view.ndim != 2 || x.shape(1) != w.shape(1))
    throw py::value_error(x.name.prefix() + " has shape " + shape_text(x.view) + ", weight has shape " +
                          shape_text(w.view));
}
template <class View>
void require_layer_gradient(const Argument<View>& dy, const Argument<View>& w) {
  if (dy.view.ndim != 2 || w.view.ndim != 2 || dy.shape(1) != w.shape(0))
    throw py::value_error(dy.name.prefix() + " has shape " + shape_text(dy.view) + ", w has shape " +
                          shape_text(w.view));
}

}  // namespace fastopt
