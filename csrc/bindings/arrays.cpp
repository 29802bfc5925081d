#include "bindings/arrays.hpp"

#include <algorithm>
#include <atomic>

namespace fastopt {
namespace {

constexpr int kNpyFloat = 11, kNpyDouble = 12, kNpyHalf = 23, kNpyUserDefined = 256;

// ml_dtypes registers bfloat16 with NumPy at run time, under a number that is known only then.
std::atomic<int> bfloat16_num{-1};

std::optional<DType> dtype_of(const py::detail::PyArrayDescr_Proxy* descr, py::handle array) {
  if (descr->byteorder == (PY_LITTLE_ENDIAN ? '>' : '<')) return std::nullopt;
  switch (descr->type_num) {
    case kNpyFloat:
      return DType::f32;
    case kNpyDouble:
      return DType::f64;
    case kNpyHalf:
      return DType::f16;
    default:
      break;
  }
  if (descr->type_num >= kNpyUserDefined && bfloat16_num < 0 &&
      py::str(array.attr("dtype").attr("name")).equal(py::str("bfloat16")))
    bfloat16_num = descr->type_num;
  if (descr->type_num == bfloat16_num) return DType::bf16;
  return std::nullopt;
}

[[noreturn]] void type_error(const std::string& text) { throw py::type_error(text); }
[[noreturn]] void value_error(const std::string& text) { throw py::value_error(text); }

bool is_array(py::handle object) { return py::detail::npy_api::get().PyArray_Check_(object.ptr()); }

std::optional<ArrayView> find_view(py::handle object) {
  const auto* array = py::detail::array_proxy(object.ptr());
  const std::optional<DType> dtype = dtype_of(py::detail::array_descriptor_proxy(array->descr), object);
  if (!dtype) return std::nullopt;
  constexpr int kCContiguous = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  ArrayView view{};
  view.data = array->data;
  view.shape = reinterpret_cast<const Index*>(array->dimensions);
  view.strides = reinterpret_cast<const Index*>(array->strides);
  view.ndim = array->nd;
  view.size = 1;
  for (int d = 0; d < view.ndim; ++d) view.size *= view.shape[d];
  view.dtype = *dtype;
  view.c_contiguous = (array->flags & kCContiguous) != 0;
  view.aligned = (array->flags & kAligned) != 0;
  view.writeable = (array->flags & kWriteable) != 0;
  return view;
}

}  // namespace

std::string ArgName::text() const {
  return index < 0 ? std::string(argument) : std::string(argument) + "[" + std::to_string(index) + "]";
}
std::string ArgName::prefix() const { return std::string(call) + ": " + text(); }

const char* dtype_name(DType dtype) {
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
  return kNames[int(dtype)];
}

std::string shape_text(const ArrayView& view) {
  std::string text = "(";
  for (int d = 0; d < view.ndim; ++d)
    text += std::to_string(view.shape[d]) + (d + 1 < view.ndim ? ", " : view.ndim == 1 ? "," : "");
  return text + ")";
}

ArrayView array_view(py::handle object, const ArgName& name) {
  if (!is_array(object))
    type_error(name.prefix() + " is " + Py_TYPE(object.ptr())->tp_name + ", expected a NumPy array");
  const std::optional<ArrayView> view = find_view(object);
  if (!view)
    type_error(name.prefix() + " is " + std::string(py::str(object.attr("dtype"))) +
               ", expected float32, float64, float16 or bfloat16 in native byte order");
  return *view;
}

std::optional<ArrayView> plain_view(py::handle object) {
  if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_) return std::nullopt;
  std::optional<ArrayView> view = find_view(object);
  if (view && (int(view->dtype) >= kComputeTypes || !view->c_contiguous || !view->aligned)) view.reset();
  return view;
}

void require_dense(const ArrayView& view, const ArgName& name, bool written) {
  if (!view.c_contiguous) value_error(name.prefix() + " is not C-contiguous");
  if (!view.aligned)
    value_error(name.prefix() + " is not aligned to its " + dtype_name(view.dtype) + " items");
  if (written && !view.writeable) value_error(name.prefix() + " is read-only");
}

ArrayView dense_input(py::handle object, const ArgName& name) {
  const ArrayView view = array_view(object, name);
  require_dense(view, name, false);
  return view;
}

ArrayView dense_output(py::handle object, const ArgName& name) {
  const ArrayView view = array_view(object, name);
  require_dense(view, name, true);
  return view;
}

Bytes writable_bytes(py::handle object, const ArgName& name) {
  if (!is_array(object))
    type_error(name.prefix() + " is " + Py_TYPE(object.ptr())->tp_name + ", expected a NumPy array");
  py::array array = py::reinterpret_borrow<py::array>(object);
  if (!(array.flags() & py::array::c_style)) value_error(name.prefix() + " is not C-contiguous");
  if (!array.writeable()) value_error(name.prefix() + " is read-only");
  return {array.mutable_data(), Index(array.nbytes()), Index(array.itemsize())};
}

void require_bytes(const Bytes& bytes, const ArgName& name, Index expected) {
  if (bytes.size != expected)
    value_error(name.prefix() + " has " + std::to_string(bytes.size) + " bytes, expected " +
                std::to_string(expected));
}

void require_computed(const ArrayView& x, const ArgName& name) {
  if (int(x.dtype) >= kComputeTypes)
    type_error(name.prefix() + " is " + dtype_name(x.dtype) + ", expected float32 or float64");
}

void require_same_dtype(const ArrayView& a, const ArgName& a_name, const ArrayView& b,
                        const ArgName& b_name) {
  if (a.dtype != b.dtype)
    type_error(a_name.prefix() + " is " + dtype_name(a.dtype) + ", " + b_name.text() + " is " +
               dtype_name(b.dtype));
}

void require_same_shape(const ArrayView& a, const ArgName& a_name, const ArrayView& b,
                        const ArgName& b_name) {
  if (a.ndim != b.ndim || !std::equal(a.shape, a.shape + a.ndim, b.shape))
    value_error(a_name.prefix() + " has shape " + shape_text(a) + ", " + b_name.text() + " has shape " +
                shape_text(b));
}

Extent extent(const ArrayView& view, const ArgName& name) {
  const char* begin = static_cast<const char*>(view.data);
  if (view.c_contiguous || view.size == 0) return {begin, begin + view.size * item_bytes(view.dtype), name};
  const char* end = begin + item_bytes(view.dtype);
  for (int d = 0; d < view.ndim; ++d)
    (view.strides[d] < 0 ? begin : end) += (view.shape[d] - 1) * view.strides[d];
  return {begin, end, name};
}

void require_apart(const Extent& a, const Extent& b, bool same_allowed) {
  if (a.begin == a.end || b.begin == b.end || a.end <= b.begin || b.end <= a.begin) return;
  if (same_allowed && a.begin == b.begin && a.end == b.end) return;
  value_error(a.name.prefix() + " overlaps " + b.name.text() + " in memory" +
              (same_allowed ? " but is not the same array" : "") + "; pass a copy");
}

void require_apart(const ArrayView& a, const ArgName& a_name, const ArrayView& b, const ArgName& b_name,
                   bool same_allowed) {
  require_apart(extent(a, a_name), extent(b, b_name), same_allowed);
}

Extents::Extents(std::vector<Extent> extents, const char* call) : sorted_(std::move(extents)) {
  std::erase_if(sorted_, [](const Extent& e) { return e.begin == e.end; });
  std::sort(sorted_.begin(), sorted_.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < sorted_.size(); ++i)
    if (sorted_[i].begin < sorted_[i - 1].end)
      value_error(std::string(call) + ": " + sorted_[i].name.text() + " overlaps " +
                  sorted_[i - 1].name.text() + " in memory");
}

const Extent* Extents::overlapping(const char* begin, const char* end) const {
  if (begin == end) return nullptr;
  // The first extent that ends behind `begin` is the only one that can reach into it first.
  const auto it = std::upper_bound(sorted_.begin(), sorted_.end(), begin,
                                   [](const char* value, const Extent& e) { return value < e.end; });
  return it != sorted_.end() && it->begin < end ? &*it : nullptr;
}

}  // namespace fastopt
