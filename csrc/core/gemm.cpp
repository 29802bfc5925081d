#include "core/gemm.hpp"

#include <algorithm>
#include <cmath>

#include "core/buffer.hpp"
#include "core/parallel.hpp"

namespace fastopt {
namespace {

thread_local Buffer scratch, shared_a, shared_b;

constexpr Index kListedPanels = 4;  // of columns of a task where rows of A are often zero
constexpr Index kListedRows = 4;    // of which a task has a multiple where steps are left out
constexpr Index kShortRows = 64;    // below them packing the columns once more is too much
constexpr double kTaskWork = 1e6;   // bytes of factors that are multiplied, some 4 us

Index cuts_of(Index n, Index size) { return (n + size - 1) / size; }

}  // namespace

void* gemm_scratch() {
  const KernelTable& table = kernels();
  const Index bytes = std::max(table.gemm[0].scratch_bytes, table.gemm[1].scratch_bytes);
  return scratch.reserve(bytes);
}

GemmTasks cut_gemm(DType dtype, const GemmArgs& args, int threads) {
  const GemmKernels& kernel = kernels().gemm[int(dtype)];
  // Half a panel takes more than half as long as a whole one.
  const Index unit = args.n < threads * kernel.columns ? kernel.columns / 2 : kernel.columns;
  const Index panels = cuts_of(args.n, unit), tiles = cuts_of(args.m, kernel.rows);
  // Several tasks a thread, so that a late thread delays nobody, but none that is not worth handing over.
  const double work = double(args.m) * double(args.n) * double(args.k) * double(item_bytes(dtype));
  const Index wanted =
      threads > 1 ? std::clamp<Index>(Index(work / kTaskWork), 1, kTasksPerThread * threads) : 1;
  const auto cut = [&](Index rows, Index columns) -> GemmTasks {
    const Index row_blocks = rows && columns ? cuts_of(args.m, rows) : 0;
    return {rows, columns, row_blocks, row_blocks ? row_blocks * cuts_of(args.n, columns) : 0};
  };
  // Lists of steps serve all columns of their rows, or all rows of their columns.
  if (args.zeros != Zeros::none && wanted > 1) {
    const bool few_rows = args.zeros == Zeros::rows;
    const Index width = few_rows ? kListedPanels * kernel.columns : kernel.columns;
    const Index column_cuts = std::min(cuts_of(args.n, width), wanted);
    const Index row_cuts = cuts_of(few_rows ? std::min<Index>(wanted, threads) : wanted, column_cuts);
    return cut(cuts_of(cuts_of(args.m, row_cuts), kListedRows) * kListedRows,
               cuts_of(cuts_of(args.n, kernel.columns), column_cuts) * kernel.columns);
  }
  // Each cut between rows packs all columns once more, and each cut between columns packs all rows where
  // there are many.
  const Index balanced =
      Index(std::sqrt(double(wanted) * double(args.m) / double(std::max<Index>(args.n, 1))));
  const Index tall = std::clamp<Index>(std::min(balanced, args.m / 128), 1, wanted);
  const Index column_cuts = std::max<Index>(std::min(panels, cuts_of(wanted, tall)), 1);
  const Index most =
      std::max({tall, args.m / kShortRows, cuts_of(std::min<Index>(threads, wanted), column_cuts)});
  const Index row_cuts = std::max<Index>(std::min({tiles, cuts_of(wanted, column_cuts), most}), 1);
  return cut(cuts_of(tiles, row_cuts) * kernel.rows, cuts_of(panels, column_cuts) * unit);
}

void run_gemm(DType dtype, const GemmArgs& args, Index begin_row, Index end_row, Index begin_col,
              Index end_col) {
  const KernelTable& table = kernels();
  const GemmKernels& kernel = table.gemm[int(dtype)];
  const GemmKernel run = !args.bf16 ? kernel.run : table.bf16_pairs ? table.bf16_pairs : kernel.run_bf16;
  run(args, begin_row, end_row, begin_col, end_col, gemm_scratch());
}

void run_gemm_task(DType dtype, const GemmArgs& args, const GemmTasks& tasks, Index task) {
  const Index row = task % tasks.row_blocks * tasks.rows, column = task / tasks.row_blocks * tasks.columns;
  run_gemm(dtype, args, row, std::min(row + tasks.rows, args.m), column,
           std::min(column + tasks.columns, args.n));
}

namespace {

// Columns of a task where all tasks share one packed A, so that cuts between columns cost nothing; 0 where
// that does not pay.
Index shared_columns(const GemmKernels& kernel, const GemmArgs& args, int threads) {
  const Index panels = cuts_of(args.n, kernel.columns);
  const Index columns = cuts_of(panels, kTasksPerThread * threads) * kernel.columns;
  return threads > 1 && !args.bf16 && kernel.packed_a_size(args, columns) ? columns : 0;
}

// How large a packed B is that tasks of several blocks of rows share; 0 where that does not pay.
Index shared_b_size(const GemmKernels& kernel, const GemmArgs& args, const GemmTasks& tasks) {
  const bool whole = tasks.columns % kernel.columns == 0;
  return tasks.row_blocks > 1 && whole && !args.bf16 ? kernel.packed_b_size(args, tasks.rows) : 0;
}

}  // namespace

void gemm(DType dtype, GemmArgs args) {
  const GemmKernels& kernel = kernels().gemm[int(dtype)];
  args.zeros = kernel.find_zeros(args);
  GemmTasks tasks = cut_gemm(dtype, args, num_threads());
  const bool several = tasks.count > 1;
  if (const Index columns =
          several && args.zeros == Zeros::none ? shared_columns(kernel, args, num_threads()) : 0) {
    char* const packed = shared_a.reserve(kernel.packed_a_size(args, columns) * item_bytes(dtype));
    const Index tiles = cuts_of(args.m, kernel.rows), some = cuts_of(tiles, kTasksPerThread * num_threads());
    parallel_for(cuts_of(tiles, some), true, [&](Index i) {
      kernel.pack_a(args, i * some * kernel.rows, std::min((i + 1) * some * kernel.rows, args.m), packed);
    });
    args.packed_a = packed;
    tasks = {args.m, columns, 1, cuts_of(args.n, columns)};
  } else if (const Index size = several ? shared_b_size(kernel, args, tasks) : 0) {
    char* const packed = shared_b.reserve(size * item_bytes(dtype));
    parallel_for(cuts_of(args.n, kernel.columns), true, [&](Index i) {
      kernel.pack_b(args, i * kernel.columns, std::min((i + 1) * kernel.columns, args.n), packed);
    });
    args.packed_b = packed;
  }
  parallel_for(tasks.count, true, [&](Index task) { run_gemm_task(dtype, args, tasks, task); });
}

}  // namespace fastopt
