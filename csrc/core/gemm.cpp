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

Index round_up(Index n, Index unit) { return (n + unit - 1) / unit * unit; }

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
  GemmTasks tasks;
  tasks.rows = std::max<Index>(args.m, 1);
  tasks.columns =
      std::max(round_up((args.n + 2 * threads - 1) / (2 * threads), kernel.columns), kernel.columns);
  tasks.row_blocks = args.m ? (args.m + tasks.rows - 1) / tasks.rows : 0;
  tasks.count = tasks.row_blocks * ((args.n + tasks.columns - 1) / tasks.columns);
  return tasks;
}

void run_gemm_task(DType dtype, const GemmArgs& args, const GemmTasks& tasks, Index task) {
  const Index row = task % tasks.row_blocks * tasks.rows, column = task / tasks.row_blocks * tasks.columns;
  kernels().gemm[int(dtype)].run(args, row, std::min(row + tasks.rows, args.m), column,
                                 std::min(column + tasks.columns, args.n), gemm_scratch());
}

void gemm(DType dtype, const GemmArgs& args) {
  const GemmTasks tasks = cut_gemm(dtype, args, num_threads());
  parallel_for(tasks.count, args.m * args.n * args.k >= 64 * kSerialElements,
               [&](Index task) { run_gemm_task(dtype, args, tasks, task); });
}

}  // namespace fastopt
