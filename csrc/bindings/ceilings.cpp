// The machine's ceilings, for the benchmarks alone.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/gil.hpp"
#include "bindings/modules.hpp"
#include "core/dispatch.hpp"
#include "core/parallel.hpp"

namespace fastopt {
namespace {

void copy(const py::object& x_, const py::object& y_) {
  const ArgName x_name{"copy", "x"}, y_name{"copy", "y"};
  const ArrayView x = dense_input(x_, x_name), y = dense_output(y_, y_name);
  if (x.dtype != DType::f32)
    throw py::type_error(x_name.prefix() + " is " + dtype_name(x.dtype) + ", expected float32");
  require_same_dtype(y, y_name, x, x_name);
  require_same_shape(y, y_name, x, x_name);
  require_apart(y, y_name, x, x_name, false);
  const auto kernel = kernels().ceilings->copy;
  const auto* from = static_cast<const float*>(x.data);
  auto* to = static_cast<float*>(y.data);
  const ReleasedGil release;
  parallel_for((x.size + kChunk - 1) / kChunk, x.size >= kSerialElements, [&](Index i) {
    kernel(from + i * kChunk, to + i * kChunk, std::min(kChunk, x.size - i * kChunk));
  });
}

// Returns the operations that were done, a fused multiply-add counted as two.
double fma_peak(Index tasks) {
  if (tasks < 1) throw py::value_error("fma_peak: tasks must be at least 1, got " + std::to_string(tasks));
  const CeilingKernels& ceilings = *kernels().ceilings;
  std::vector<float> sums(std::size_t(tasks), 0.0f);
  {
    const ReleasedGil release;
    parallel_for(tasks, tasks > 1, [&](Index i) { ceilings.multiply_add_chains(&sums[std::size_t(i)]); });
  }
  return ceilings.operations * double(tasks);
}

}  // namespace

void bind_ceilings(py::module_& m) {
  using py::arg;
  m.def("copy", &copy, arg("x"), arg("y"),
        "y = x past the caches, float32: the ceiling of memory-bound work.");
  m.def("fma_peak", &fma_peak, arg("tasks"),
        "Multiply-adds in registers on the pool; returns the float32 operations done: the ceiling of "
        "arithmetic.");
}

}  // namespace fastopt
