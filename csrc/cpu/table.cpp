#include "cpu/table.hpp"

#define FASTOPT_QUOTE_(x) #x
#define FASTOPT_QUOTE(x) FASTOPT_QUOTE_(x)

namespace fastopt {
inline namespace FASTOPT_ISA {

KernelTable kernel_table() {
  return {
      .isa = FASTOPT_QUOTE(FASTOPT_ISA),
      .step = step_table(),
      .packed_step = packed_step_table(),
      .measure = measure_table(),
      .reduce = reduce_table(),
      .sums = sum_table(),
      .rows = row_table(),
      .batch_norm = batch_norm_table(),
      .elementwise = elementwise_table(),
      .gemm = gemm_table(),
      .strips = strip_table(),
      .bf16_pairs = bf16_pairs(),
      .packing = packing_table(),
      .math = math_table(),
      .ceilings = ceiling_table(),
  };
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
