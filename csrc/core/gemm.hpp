// Matrix products cut into tasks for the pool. A caller that has more to do in one parallel region than a
// product alone runs the tasks itself.
#pragma once

#include "core/dispatch.hpp"

namespace fastopt {

// C cut into blocks of rows x columns, numbered along the rows first.
struct GemmTasks {
  Index rows, columns, row_blocks, count;
};
GemmTasks cut_gemm(DType dtype, const GemmArgs& args, int threads);
void run_gemm_task(DType dtype, const GemmArgs& args, const GemmTasks& tasks, Index task);

// Rows [begin_row, end_row) and columns [begin_col, end_col) on the calling thread; see GemmKernels.
void run_gemm(DType dtype, const GemmArgs& args, Index begin_row, Index end_row, Index begin_col,
              Index end_col);

// The whole product on the pool; small ones on the caller's thread.
void gemm(DType dtype, GemmArgs args);

// The calling thread's scratch memory for GemmKernels::run, kept until the thread ends.
void* gemm_scratch();

}  // namespace fastopt
