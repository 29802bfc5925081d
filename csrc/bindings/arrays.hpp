// All array checks of the native layer. A check that fails throws before anything is written, with a message
// that names the call, the argument, its index and both values.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "core/array.hpp"

namespace fastopt {

namespace py = pybind11;

// How an argument is called in a message: "grads[3]", or "out".
struct ArgName {
  const char* call;
  const char* argument;
  Index index = -1;

  std::string text() const;    // grads[3]
  std::string prefix() const;  // step: grads[3]
};

// The views point into the object, which must outlive them. TypeError for anything but an ndarray of
// float32, float64, float16 or ml_dtypes' bfloat16 in native byte order.
ArrayView array_view(py::handle object, const ArgName& name);

// The view of an ndarray, of no subclass, that is float32 or float64, C-contiguous and aligned; of nothing
// else.
std::optional<ArrayView> plain_view(py::handle object);

// TypeError or ValueError unless the array is C-contiguous, aligned and, where asked, writable.
void require_dense(const ArrayView& view, const ArgName& name, bool written);
ArrayView dense_input(py::handle object, const ArgName& name);
ArrayView dense_output(py::handle object, const ArgName& name);

// Memory of small integers, whose meaning is the caller's.
struct Bytes {
  void* data;
  Index size, item;  // of all, of an element
};
// TypeError or ValueError unless a C-contiguous, writable ndarray; of any type.
Bytes writable_bytes(py::handle object, const ArgName& name);
// ValueError unless there are as many bytes as that.
void require_bytes(const Bytes& bytes, const ArgName& name, Index expected);

// TypeError unless float32 or float64, the types that formulas compute in.
void require_computed(const ArrayView& x, const ArgName& name);
// "step: grads[3] is float64, params[3] is float32"
void require_same_dtype(const ArrayView& a, const ArgName& a_name, const ArrayView& b, const ArgName& b_name);
// "step: grads[3] has shape (2, 3), params[3] has shape (3, 2)"
void require_same_shape(const ArrayView& a, const ArgName& a_name, const ArrayView& b, const ArgName& b_name);

// The memory of one array from its first to its last element, for overlap checks.
struct Extent {
  const char* begin;
  const char* end;
  ArgName name;
};
Extent extent(const ArrayView& view, const ArgName& name);

// ValueError where the two share memory, unless they begin and end together and may be the same array.
void require_apart(const Extent& a, const Extent& b, bool same_allowed);
void require_apart(const ArrayView& a, const ArgName& a_name, const ArrayView& b, const ArgName& b_name,
                   bool same_allowed);

// Extents in address order. Construction throws ValueError when two of them overlap.
class Extents {
 public:
  Extents() = default;
  Extents(std::vector<Extent> extents, const char* call);
  // The extent that overlaps [begin, end), if any; an exact match is reported too.
  const Extent* overlapping(const char* begin, const char* end) const;

 private:
  std::vector<Extent> sorted_;
};

const char* dtype_name(DType dtype);
std::string shape_text(const ArrayView& view);

}  // namespace fastopt
