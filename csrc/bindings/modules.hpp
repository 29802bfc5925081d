// The parts of the _core module, one per source file.
#pragma once

#include <pybind11/pybind11.h>

namespace fastopt {

void bind_ceilings(pybind11::module_& m);  // ceilings.cpp: what the machine does at best

void bind_step(pybind11::module_& m);     // step.cpp: StepPlan, rules
void bind_kernels(pybind11::module_& m);  // kernels.cpp: activations, losses, reductions, rows

}  // namespace fastopt
