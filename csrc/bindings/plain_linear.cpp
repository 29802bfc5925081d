// The common case of linear and linear_backward without the general one's checks, which take longer than a
// small product: dense arrays of one dtype, and nothing after the sums but an activation without parameters.
// Of anything else, mistakes among them, these calls do nothing and return None: the general ones decide.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string_view>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/formulas.hpp"
#include "bindings/gil.hpp"
#include "bindings/modules.hpp"
#include "core/chunks.hpp"
#include "core/column_sums.hpp"
#include "core/dispatch.hpp"
#include "core/gemm.hpp"

namespace fastopt {
namespace {

constexpr Index kAny = -1;  // of an extent: whatever it is

// Arguments that are plain and fit each other. After one that is not, `ok` is false and views are empty.
class PlainArguments {
 public:
  ArrayView input(py::handle object, Index rows, Index columns, bool matrix = true) {
    return take(object, rows, columns, matrix, false);
  }

  // What is given, or a new array for None; `result` keeps it.
  ArrayView output(py::object& result, Index rows, Index columns, bool matrix = true) {
    if (result.is_none() && ok) {
      const py::dtype type(dtype == DType::f32 ? "float32" : "float64");
      result = matrix ? py::array(type, std::vector<Index>{rows, columns})
                      : py::array(type, std::vector<Index>{columns});
    }
    return take(result, rows, columns, matrix, true);
  }

  bool apart() const {
    for (int i = 0; i < count_; ++i)
      for (int j = 0; j < i; ++j)
        if ((written_[i] || written_[j]) && begin_[i] < end_[j] && begin_[j] < end_[i]) return false;
    return true;
  }

  bool ok = true;
  DType dtype = DType::f32;

 private:
  static constexpr int kMost = 9;

  ArrayView take(py::handle object, Index rows, Index columns, bool matrix, bool written) {
    const std::optional<ArrayView> view = ok ? plain_view(object) : std::nullopt;
    ok = view && view->ndim == 1 + matrix && (count_ == 0 || view->dtype == dtype) &&
         (!written || view->writeable) && (columns == kAny || view->shape[int(matrix)] == columns) &&
         (!matrix || rows == kAny || view->shape[0] == rows);
    if (!ok) return {};
    dtype = view->dtype;
    begin_[count_] = static_cast<const char*>(view->data);
    end_[count_] = begin_[count_] + view->size * item_bytes(dtype);
    written_[count_++] = written;
    return *view;
  }

  int count_ = 0;
  const char *begin_[kMost], *end_[kMost];
  bool written_[kMost];
};

// The number of an activation that has no parameters; negative for None; nothing for any other name.
std::optional<int> plain_activation(py::handle name) {
  if (name.is_none()) return -1;
  if (!PyUnicode_Check(name.ptr())) return std::nullopt;
  Py_ssize_t length = 0;
  const char* const text = PyUnicode_AsUTF8AndSize(name.ptr(), &length);
  if (!text) throw py::error_already_set();
  for (int f = 0; f < int(std::size(kActivations)); ++f)
    if (kActivations[f].params.size == 0 &&
        std::string_view(text, std::size_t(length)) == kActivations[f].name)
      return f;
  return std::nullopt;
}

constexpr double kNoParams[Names::kMax] = {};

py::object linear_plain(py::handle x_, py::handle w_, py::handle bias_, py::handle name, py::object out_) {
  const std::optional<int> activation = plain_activation(name);
  if (!activation) return py::none();
  PlainArguments arguments;
  const ArrayView w = arguments.input(w_, kAny, kAny);
  const ArrayView x = arguments.input(x_, kAny, arguments.ok ? w.shape[1] : 0);
  if (!arguments.ok) return py::none();
  const Index m = x.shape[0], n = w.shape[0], k = w.shape[1];
  GemmArgs args{m, n, k, {x.data, k, 1}, {w.data, 1, k}, nullptr, n};
  if (!bias_.is_none()) args.epilogue.bias = arguments.input(bias_, 0, n, false).data;
  args.epilogue.activation = *activation;
  args.epilogue.params = kNoParams;
  args.c = arguments.output(out_, m, n).data;
  if (!arguments.ok || !arguments.apart()) return py::none();
  {
    const ReleasedGil release;
    gemm(arguments.dtype, args);
  }
  return out_;
}

// dz is work space, or None. Returns (dx, dw, db).
py::object linear_backward_plain(py::handle dy_, py::handle x_, py::handle w_, py::handle name, py::handle z_,
                                 py::handle y_, py::object dx_, py::object dw_, py::object db_,
                                 py::object dz_) {
  const std::optional<int> activation = plain_activation(name);
  if (!activation) return py::none();
  const bool active = *activation >= 0;
  PlainArguments arguments;
  const ArrayView w = arguments.input(w_, kAny, kAny);
  const ArrayView x = arguments.input(x_, kAny, arguments.ok ? w.shape[1] : 0);
  if (!arguments.ok) return py::none();
  const Index m = x.shape[0], n = w.shape[0], k = w.shape[1];
  const ArrayView dy = arguments.input(dy_, m, n);
  const FormulaInfo none{"", {}, false, false}, &info = active ? kActivations[*activation] : none;
  ArrayView z{}, y{};
  if (info.grad_needs_x) z = arguments.input(z_, m, n);
  if (info.grad_needs_y) y = arguments.input(y_, m, n);
  ArrayView dz = dy;
  if (active) {
    dz = arguments.output(dz_, m, n);
  } else if (!dz_.is_none()) {
    return py::none();
  }
  const ArrayView dx = arguments.output(dx_, m, k), dw = arguments.output(dw_, n, k);
  const ArrayView db = arguments.output(db_, 0, n, false);
  if (!arguments.ok || !arguments.apart()) return py::none();
  {
    const ReleasedGil release;
    const DType dtype = arguments.dtype;
    if (active) {
      const ActivationGradArgs args{*activation, kNoParams, dy.data, z.data, y.data, dz.data};
      const ElementwiseKernels& kernel = kernels().elementwise[int(dtype)];
      run_chunks(m * n, kChunk, m * n,
                 [&](Index begin, Index end) { kernel.activation_grad(args, begin, end); });
    }
    gemm(dtype, {m, k, n, {dz.data, n, 1}, {w.data, k, 1}, dx.data, k});
    gemm(dtype, {n, k, m, {dz.data, 1, n}, {x.data, k, 1}, dw.data, k});
    column_sums(dtype, dz.data, m, n, db.data, false);
  }
  return py::make_tuple(dx_, dw_, db_);
}

}  // namespace

void bind_plain_linear(py::module_& m) {
  using py::arg;
  m.def("linear_plain", &linear_plain, arg("input"), arg("weight"), arg("bias"), arg("activation"),
        arg("out"), "linear of dense arrays; None where the general call must decide.");
  m.def("linear_backward_plain", &linear_backward_plain, arg("dy"), arg("x"), arg("w"), arg("activation"),
        arg("z"), arg("y"), arg("dx"), arg("dw"), arg("db"), arg("dz"),
        "linear_backward of dense arrays; None where the general call must decide.");
}

}  // namespace fastopt
