#include "bindings/device_arrays.hpp"

#include <array>
#include <cstring>

namespace fastopt {
namespace {

struct Element {
  char kind;
  Index item;
};

enum class Source : std::uint8_t { torch, cupy, other };

Source source_of(py::handle object) {
  // A type's module does not change: asking once spares most of the time that a small call takes.
  thread_local std::array<std::pair<PyTypeObject*, Source>, 4> known{};
  thread_local std::size_t next = 0;
  PyTypeObject* const type = Py_TYPE(object.ptr());
  for (const auto& [known_type, source] : known)
    if (known_type == type) return source;
  const std::string module = py::str(py::type::handle_of(object).attr("__module__"));
  const std::string root = module.substr(0, module.find('.'));
  const bool is_torch = root == "torch" || py::hasattr(object, "is_cuda");
  const Source source = is_torch ? Source::torch : root == "cupy" ? Source::cupy : Source::other;
  Py_INCREF(type);  // so that no other type takes its address
  known[next++ % known.size()] = {type, source};
  return source;
}

std::optional<DType> dtype_of(const Element& element) {
  if (element.kind == 'V' && element.item == 2) return DType::bf16;
  if (element.kind != 'f') return std::nullopt;
  if (element.item == 4) return DType::f32;
  if (element.item == 8) return DType::f64;
  if (element.item == 2) return DType::f16;
  return std::nullopt;
}

[[noreturn]] void not_on_device(py::handle object, const ArgName& name) {
  throw py::type_error(name.prefix() + " is " + Py_TYPE(object.ptr())->tp_name +
                       ", expected an array on a CUDA device (CuPy, torch, or __cuda_array_interface__)");
}

// float32 -> {'f', 4}, of a torch dtype.
Element torch_element(py::handle dtype) {
  struct Known {
    const char* name;
    Element element;
  };
  constexpr Known kKnown[] = {{"torch.float32", {'f', 4}}, {"torch.float64", {'f', 8}},
                              {"torch.float16", {'f', 2}}, {"torch.bfloat16", {'V', 2}},
                              {"torch.int64", {'i', 8}},   {"torch.int32", {'i', 4}},
                              {"torch.int16", {'i', 2}},   {"torch.int8", {'i', 1}},
                              {"torch.uint8", {'u', 1}},   {"torch.bool", {'b', 1}}};
  thread_local std::array<std::pair<PyObject*, Element>, std::size(kKnown)>
      seen{};  // torch's dtypes live for ever
  for (auto& [object, element] : seen) {
    if (object == dtype.ptr()) return element;
    if (object) continue;
    const std::string name = py::str(dtype);
    for (const Known& known : kKnown)
      if (name == known.name) {
        object = dtype.ptr();
        return element = known.element;
      }
    break;
  }
  return {'?', 1};
}

// {'f', 4} of "<f4"; big-endian elements are of no kind that is known.
Element typestr_element(const std::string& typestr) {
  if (typestr.size() < 3 || typestr[0] == '>') return {'?', 1};
  return {typestr[1], std::stol(typestr.substr(2))};
}

Index length(py::handle sequence, Index (&into)[kMaxAxes], Index factor, const ArgName& name) {
  const py::tuple values = py::reinterpret_borrow<py::object>(sequence);
  const Index n = Index(values.size());
  if (n > kMaxAxes)
    throw py::type_error(name.prefix() + " has " + std::to_string(n) + " axes, at most " +
                         std::to_string(kMaxAxes) + " are supported");
  for (Index d = 0; d < n; ++d) into[d] = factor * PyLong_AsSsize_t(PyTuple_GET_ITEM(values.ptr(), d));
  return n;
}

void set_dense_strides(DeviceView& view) {
  Index step = view.item;
  for (int d = view.ndim - 1; d >= 0; --d) {
    view.strides_room[d] = step;
    step *= view.shape_room[d];
  }
}

void set_element(DeviceView& view, const Element& element) {
  view.kind = element.kind;
  view.item = element.item;
  view.dtype = dtype_of(element).value_or(DType::f32);
}

void read_torch(py::handle object, const ArgName& name, DeviceView& view) {
  set_element(view, torch_element(object.attr("dtype")));
  view.data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<std::uintptr_t>());
  view.ndim = int(length(object.attr("shape"), view.shape_room, 1, name));
  if (object.attr("is_contiguous")().cast<bool>()) {
    set_dense_strides(view);
  } else {
    length(object.attr("stride")(), view.strides_room, view.item, name);
  }
  view.writeable = true;
}

void read_interface(py::handle object, const ArgName& name, DeviceView& view) {
  if (!py::hasattr(object, "__cuda_array_interface__")) not_on_device(object, name);
  const py::dict interface = object.attr("__cuda_array_interface__");
  Element element = typestr_element(interface["typestr"].cast<std::string>());
  // NumPy's own name for bfloat16 is two bytes of nothing in particular.
  if (element.kind == 'V' && !py::str(object.attr("dtype")).equal(py::str("bfloat16"))) element.kind = '?';
  set_element(view, element);
  const py::tuple data = interface["data"];
  view.data = reinterpret_cast<void*>(data[0].cast<std::uintptr_t>());
  view.writeable = !data[1].cast<bool>();
  view.ndim = int(length(interface["shape"], view.shape_room, 1, name));
  if (!interface.contains("strides") || interface["strides"].is_none()) {
    set_dense_strides(view);
  } else {
    length(interface["strides"], view.strides_room, 1, name);
  }
}

void read_cupy(py::handle object, const ArgName& name, DeviceView& view) {
  const py::object dtype = object.attr("dtype");
  const char kind = dtype.attr("kind").cast<char>();
  const bool named = kind != 'V' || py::str(dtype.attr("name")).equal(py::str("bfloat16"));
  set_element(view, {named ? kind : '?', dtype.attr("itemsize").cast<Index>()});
  view.data = reinterpret_cast<void*>(object.attr("data").attr("ptr").cast<std::uintptr_t>());
  view.ndim = int(length(object.attr("shape"), view.shape_room, 1, name));
  length(object.attr("strides"), view.strides_room, 1, name);
  view.writeable = true;
}

bool is_c_contiguous(const DeviceView& view) {
  Index step = view.item;
  for (int d = view.ndim - 1; d >= 0; --d) {
    if (view.shape_room[d] != 1 && view.strides_room[d] != step) return view.size == 0;
    step *= view.shape_room[d];
  }
  return true;
}

}  // namespace

DeviceView& DeviceView::operator=(const DeviceView& other) {
  ArrayView::operator=(other);
  kind = other.kind, item = other.item, device = other.device;
  std::memcpy(shape_room, other.shape_room, sizeof shape_room);
  std::memcpy(strides_room, other.strides_room, sizeof strides_room);
  shape = shape_room, strides = strides_room;
  return *this;
}

DeviceView any_device_view(py::handle object, const ArgName& name) {
  DeviceView view;
  switch (source_of(object)) {
    case Source::torch:
      read_torch(object, name, view);
      break;
    case Source::cupy:
      read_cupy(object, name, view);
      break;
    default:
      read_interface(object, name, view);
  }
  view.shape = view.shape_room, view.strides = view.strides_room;
  view.size = 1;
  for (int d = 0; d < view.ndim; ++d) view.size *= view.shape_room[d];
  view.c_contiguous = is_c_contiguous(view);
  view.aligned = reinterpret_cast<std::uintptr_t>(view.data) % std::uintptr_t(view.item) == 0;
  view.device = view.size ? pointer_device(view.data) : -1;
  if (view.size && view.device < 0)
    throw py::value_error(name.prefix() + " is in the host's memory, expected memory of a CUDA device");
  return view;
}

DeviceView device_view(py::handle object, const ArgName& name) {
  const DeviceView view = any_device_view(object, name);
  if (!dtype_of({view.kind, view.item}))
    throw py::type_error(name.prefix() + " is " + element_name(view) +
                         ", expected float32, float64, float16 or bfloat16");
  return view;
}

std::string element_name(const DeviceView& view) {
  if (const std::optional<DType> dtype = dtype_of({view.kind, view.item})) return dtype_name(*dtype);
  switch (view.kind) {
    case 'b':
      return "bool";
    case 'i':
    case 'u':
      return (view.kind == 'u' ? "uint" : "int") + std::to_string(8 * view.item);
    case 'c':
      return "complex" + std::to_string(8 * view.item);
    default:
      return "of an unknown type";
  }
}

void require_same_device(const DeviceView& a, const ArgName& a_name, const DeviceView& b,
                         const ArgName& b_name) {
  if (a.device >= 0 && b.device >= 0 && a.device != b.device)
    throw py::value_error(a_name.prefix() + " is on CUDA device " + std::to_string(a.device) + ", " +
                          b_name.text() + " is on device " + std::to_string(b.device));
}

Bytes DeviceCall::bytes(py::handle object, const ArgName& name) {
  const DeviceView view = any_view(object, name);
  require_dense(view, name, true);
  return {view.data, view.size * view.item, view.item};
}

const DeviceView& DeviceCall::placed(const DeviceView& view, const ArgName& name) {
  if (view.device < 0) return view;
  if (!guard_) {
    device_ = view.device;
    first_ = name;
    guard_.emplace(device_);
  } else if (view.device != device_) {
    DeviceView first;
    first.device = device_;
    require_same_device(view, name, first, first_);
  }
  return view;
}

}  // namespace fastopt
