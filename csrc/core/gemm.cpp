#include "core/gemm.hpp"

#include <algorithm>
#include <memory>
#include <new>

#include "core/parallel.hpp"

namespace fastopt {
namespace {

constexpr std::align_val_t kAlign{64};

struct Scratch {
  void* data = nullptr;
  Index bytes = 0;
  ~Scratch() { ::operator delete(data, kAlign); }
};
thread_local Scratch scratch;

constexpr double kTaskWork = 8e5;  // multiplications, some 8 us
constexpr Index kTallRows = 256;

Index cuts_of(Index n, Index size) { return (n + size - 1) / size; }

}  // namespace

void* gemm_scratch() {
  const KernelTable& table = kernels();
  const Index bytes = std::max(table.gemm[0].scratch_bytes, table.gemm[1].scratch_bytes);
  if (scratch.bytes < bytes) {
    ::operator delete(scratch.data, kAlign);
    scratch.data = ::operator new(std::size_t(bytes), kAlign);
    scratch.bytes = bytes;
  }
  return scratch.data;
}

GemmTasks cut_gemm(DType dtype, const GemmArgs& args, int threads) {
  const GemmKernels& kernel = kernels().gemm[int(dtype)];
  // Where there are few panels, half ones are cut: a register tile of one vector is still a good one.
  const Index unit = args.n < 4 * threads * kernel.columns ? kernel.columns / 2 : kernel.columns;
  const Index panels = cuts_of(args.n, unit), tiles = cuts_of(args.m, kernel.rows);
  // Several tasks a thread, so that a late thread delays nobody, but none that is not worth handing over.
  const double work = double(args.m) * double(args.n) * double(args.k);
  const Index wanted = threads > 1 ? std::clamp<Index>(Index(work / kTaskWork), 1, 4 * threads) : 1;
  // Cuts between columns come first: each task packs columns of its own. Cuts between rows pack the same
  // columns again, which many rows outweigh.
  const Index tall = std::clamp<Index>(args.m / kTallRows, 1, wanted);
  const Index column_cuts = std::min(panels, cuts_of(wanted, tall));
  const Index row_cuts = std::min(tiles, cuts_of(wanted, std::max<Index>(column_cuts, 1)));
  GemmTasks tasks;
  tasks.rows = cuts_of(tiles, std::max<Index>(row_cuts, 1)) * kernel.rows;
  tasks.columns = cuts_of(panels, std::max<Index>(column_cuts, 1)) * unit;
  tasks.row_blocks = tiles ? cuts_of(args.m, tasks.rows) : 0;
  tasks.count = panels ? tasks.row_blocks * cuts_of(args.n, tasks.columns) : 0;
  return tasks;
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

void gemm(DType dtype, const GemmArgs& args) {
  const GemmTasks tasks = cut_gemm(dtype, args, num_threads());
  parallel_for(tasks.count, true, [&](Index task) { run_gemm_task(dtype, args, tasks, task); });
}

}  // namespace fastopt
