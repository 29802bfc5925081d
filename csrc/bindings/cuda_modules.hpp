// The parts of the _cuda module, one per source file.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "cuda/gemm.hpp"
#include "cuda/kernels.hpp"

namespace fastopt {

void bind_cuda_kernels(pybind11::module_& m);  // cuda_kernels.cpp: activations, losses, reductions, rows
void bind_cuda_linear(pybind11::module_& m);   // cuda_linear.cpp: matrix products, linear layers
void bind_cuda_program(pybind11::module_& m);  // cuda_program.cpp: Program
void bind_cuda_step(pybind11::module_& m);     // cuda_step.cpp: StepPlan

// The precision of this name; ieee without one.
Precision precision_of(const char* call, const std::optional<std::string>& name);  // cuda_linear.cpp

// What stands behind Python's StepPlan: its tensors, and how many coefficients one of them takes.
struct NativeDevicePlan {
  const DevicePlan* plan;
  const std::vector<PlanTensor>* tensors;
  Index width;
};
NativeDevicePlan native_device_plan(pybind11::handle plan);  // cuda_step.cpp

}  // namespace fastopt
