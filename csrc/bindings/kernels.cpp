// The drivers elementwise, reduce and rows for Python.
#include "bindings/modules.hpp"

namespace fastopt {

void bind_kernels(pybind11::module_&) {}

}  // namespace fastopt
