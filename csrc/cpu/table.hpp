// The drivers' parts of one instruction set's KernelTable; table.cpp puts them together.
#pragma once

#include "core/dispatch.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

const StepKernels* step_table();
const ReduceKernels* reduce_table();
const SumKernels* sum_table();
const RowKernels* row_table();
const ElementwiseKernels* elementwise_table();
const GemmKernels* gemm_table();
const CeilingKernels* ceiling_table();
const MathKernels* math_table();

}  // namespace FASTOPT_ISA
}  // namespace fastopt
