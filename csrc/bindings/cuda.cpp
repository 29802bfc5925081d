// The _cuda module: devices, and the list of its parts.
#include <pybind11/pybind11.h>

#include "bindings/cuda_modules.hpp"
#include "bindings/device_arrays.hpp"
#include "cuda/cublaslt.hpp"

PYBIND11_MODULE(FASTOPT_CUDA_MODULE, m, pybind11::mod_gil_not_used()) {
  using namespace fastopt;
  m.doc() = "The native layer of fastopt for NVIDIA GPUs.";
  py::register_exception<DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  py::register_exception<lt::MissingLibrary>(m, "MissingLibrary", PyExc_RuntimeError);

  m.attr("architectures") = FASTOPT_CUDA_ARCHS;
  m.def("device_count", &device_count, "How many devices there are; DeviceError where none can be used.");
  m.def("driver_version", &driver_version, "The CUDA version of the driver, 13010 for 13.1; 0 without one.");
  m.def(
      "pointer_device",
      [](std::uintptr_t pointer) { return pointer_device(reinterpret_cast<void*>(pointer)); },
      py::arg("pointer"), "The device whose memory this address is in, -1 for the host's.");
  m.def(
      "is_capturing",
      [](std::uintptr_t stream) { return is_capturing(reinterpret_cast<CudaStream>(stream)); },
      py::arg("stream"));
  bind_cuda_kernels(m);
  bind_cuda_linear(m);
  bind_cuda_program(m);
  bind_cuda_step(m);
}
