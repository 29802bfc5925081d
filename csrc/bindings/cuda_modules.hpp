// The parts of the _cuda module, one per source file.
#pragma once

#include <pybind11/pybind11.h>

namespace fastopt {

void bind_cuda_linear(pybind11::module_& m);  // cuda_linear.cpp: matrix products, linear layers
void bind_cuda_step(pybind11::module_& m);    // cuda_step.cpp: StepPlan

}  // namespace fastopt
