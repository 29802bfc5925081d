// The drivers' parts of one instruction set's KernelTable; table.cpp puts them together.
#pragma once

#include "core/dispatch.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

const StepKernels* step_table();
const PackedStepKernels* packed_step_table();
const MeasureKernels* measure_table();
const ReduceKernels* reduce_table();
const SumKernels* sum_table();
const RowKernels* row_table();
const BatchNormKernels* batch_norm_table();
const ElementwiseKernels* elementwise_table();
const GemmKernels* gemm_table();
const StripKernels* strip_table();
const PackingKernels* packing_table();
const CeilingKernels* ceiling_table();
const MathKernels* math_table();

// GemmKernels::run_bf16; bf16_pairs returns the one that needs AVX512-BF16, null where the level has none.
void run_bf16(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col,
              void* scratch);
GemmKernel bf16_pairs();

}  // namespace FASTOPT_ISA
}  // namespace fastopt
