// Arrays in the memory of a CUDA device, of whatever library, as the checks and kernels see them.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>

#include "bindings/arrays.hpp"
#include "cuda/runtime.hpp"

namespace fastopt {

inline constexpr int kMaxAxes = 8;

// A view that owns its shape and strides: other libraries' objects make theirs anew for each question.
struct DeviceView : ArrayView {
  char kind;   // of the elements: 'f'loat, bfloat16 'V', 'i'nt, 'u'int, 'b'ool; `dtype` counts for the first
               // two
  Index item;  // bytes of an element
  int device = 0;  // where the memory is; -1: there is none to be anywhere

  DeviceView() = default;
  DeviceView(const DeviceView& other) { *this = other; }
  DeviceView& operator=(const DeviceView& other);

  Index shape_room[kMaxAxes], strides_room[kMaxAxes];
};

// The view of a CuPy array, a torch CUDA tensor, or an object with __cuda_array_interface__, which must
// outlive it. TypeError for anything else and for more than kMaxAxes axes, ValueError for memory of the host.
// The elements may be of any type; `device_view` raises TypeError unless they are float32, float64, float16
// or bfloat16.
DeviceView any_device_view(py::handle object, const ArgName& name);
DeviceView device_view(py::handle object, const ArgName& name);

// "int64" and the like, of any element type.
std::string element_name(const DeviceView& view);

// ValueError unless both are on one device.
void require_same_device(const DeviceView& a, const ArgName& a_name, const DeviceView& b,
                         const ArgName& b_name);

// What a call works with: a stream, and the device of the first array it looks at, which is current as long
// as this object lives. Further arrays must be on that device.
class DeviceCall {
 public:
  explicit DeviceCall(std::uintptr_t stream) : stream_(reinterpret_cast<CudaStream>(stream)) {}

  using View = DeviceView;
  DeviceView view(py::handle object, const ArgName& name) { return placed(device_view(object, name), name); }
  DeviceView any_view(py::handle object, const ArgName& name) {
    return placed(any_device_view(object, name), name);
  }

  // As `writable_bytes`, of an array on the device.
  Bytes bytes(py::handle object, const ArgName& name);

  // As if this array had been looked at: it was, when it was given.
  void begin_with(const DeviceView& known, const ArgName& name) { placed(known, name); }

  CudaStream stream() const { return stream_; }

 private:
  const DeviceView& placed(const DeviceView& view, const ArgName& name);

  CudaStream stream_;
  int device_ = -1;
  ArgName first_{};  // the array that the device is of
  std::optional<DeviceGuard> guard_;
};

}  // namespace fastopt
