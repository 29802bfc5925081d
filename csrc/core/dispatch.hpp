// KernelTable: the entry points of one instruction set. Every csrc/cpu/*.cpp is compiled once per level and
// is reached only through its level's table, which is chosen once by cpuid (FASTOPT_ISA overrides).
//
// A kernel works on one contiguous piece of its arrays on the calling thread; core/ and bindings/ cut the
// work into pieces and run them on the pool. Rows of a table are formulas in registry order.
#pragma once

#include "core/array.hpp"

namespace fastopt {

// One chunk of one tensor of an optimizer step. coefs: Common, then the rule's own (see cpu/step.cpp).
struct StepChunk {
  void* p;
  const void* g;
  void* states[4];
  void* ema;  // null: no average is kept
  Index n;
};
using StepKernel = void (*)(const StepChunk& chunk, const double* coefs);
struct StepKernels {
  StepKernel at[kDTypes][2];  // [storage][with average]
};
inline constexpr int kCommonCoefs = 7;  // grad_scale clip_value l1 l2 lr decay ema_decay

// One chunk of a reduction, in the monoid's 16 lanes; chunk results are merged in chunk order by the caller.
enum class Monoid : std::uint8_t { sum, abs_sum, sum_squares, abs_max };
using ReduceKernel = double (*)(const void* x, Index n);
struct ReduceKernels {
  ReduceKernel at[kDTypes];
};

using MathKernel = void (*)(const void* x, void* y, Index n);
struct MathKernels {
  MathKernel at[kComputeTypes];
};

struct KernelTable {
  const char* isa;
  const StepKernels* step;  // [rule]
  const ReduceKernels* reduce;  // [Monoid]
  const MathKernels* math;  // [function of math.hpp], for the accuracy tests
};

// The table in use. set_isa returns false when the level is not built in or this CPU lacks it.
const KernelTable& kernels();
bool set_isa(const char* name);

// Names of the levels that this build has and this CPU runs, best first; null-terminated.
const char* const* available_isas();
// Set when FASTOPT_ISA asked for a level that is not available: its value, else null.
const char* rejected_isa();

}  // namespace fastopt
