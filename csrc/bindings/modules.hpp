// The parts of the _core module, one per source file.
#pragma once

#include <pybind11/pybind11.h>

#include "core/plan.hpp"

namespace fastopt {

void bind_ceilings(pybind11::module_& m);  // ceilings.cpp: what the machine does at best

void bind_step(pybind11::module_& m);          // step.cpp: StepPlan, rules
void bind_kernels(pybind11::module_& m);       // kernels.cpp: activations, losses, reductions, rows
void bind_linear(pybind11::module_& m);        // linear.cpp: matrix products, linear layers
void bind_plain_linear(pybind11::module_& m);  // plain_linear.cpp: their common case
void bind_program(pybind11::module_& m);       // program.cpp: Program

// What stands behind Python's StepPlan, and how many coefficients one of its tensors takes.
struct NativePlan {
  StepPlan* plan;
  Index width;
};
NativePlan native_plan(pybind11::handle plan);  // step.cpp

}  // namespace fastopt
