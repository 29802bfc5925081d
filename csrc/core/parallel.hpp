// The thread pool: one parallel region at a time over a list of tasks, spin, yield, then sleep; fork-safe.
// No OpenMP runtime: none is shipped, none can clash with the one of torch or scikit-learn.
#pragma once

#include "core/array.hpp"

namespace fastopt {

// At least 1. The default is OMP_NUM_THREADS, else the CPUs this process may run on.
int num_threads();
void set_num_threads(int n);

using Task = void (*)(void* context, Index task);

// Calls task(context, i) once for each i in [0, count). With `parallel` false, or while another thread is
// inside a region, everything runs on the caller's thread. Which thread runs a task is not fixed, so a task
// may not depend on it; that is what makes results independent of the number of threads. A task may not
// throw.
void run_tasks(Index count, bool parallel, Task task, void* context);

// The same for a callable f(Index).
template <class F>
void parallel_for(Index count, bool parallel, F&& f) {
  run_tasks(
      count, parallel, [](void* context, Index i) { (*static_cast<F*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// Work below this many elements is not worth waking a thread for.
inline constexpr Index kSerialElements = 16384;
// Of a region whose tasks are cut to measure, so that a late thread leaves little to wait for.
inline constexpr int kTasksPerThread = 4;
// Elements of a task of an elementwise, step or reduce driver: 8192 floats of four streams fit in L2.
inline constexpr Index kChunk = 8192;

}  // namespace fastopt
