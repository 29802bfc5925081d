// KernelTable: the entry points of one instruction set. Every csrc/cpu/*.cpp is compiled once per level and
// is reached only through its level's table, which is chosen once by cpuid (FASTOPT_ISA overrides).
//
// A kernel works on one contiguous piece of its arrays on the calling thread; core/ and bindings/ cut the
// work into pieces and run them on the pool. Rows of a table are formulas in registry order.
#pragma once

#include "core/array.hpp"
#include "core/packing.hpp"

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
struct StorageKernels {
  StepKernel at[2][2];  // [with average][clipped by value or with an L1 penalty]
};
struct StepKernels {
  StorageKernels at[kComputeTypes];  // [storage]; two-byte parameters are unpacked first, see plan_packed.cpp
};

// The same of float32 parameters whose averages are packed, of elements that begin at a block of noise's
// first. No average of the parameters is kept, and nothing is clipped.
struct PackedChunk {
  StepChunk chunk;
  std::uint8_t* exponents[4];
  const Noise (*noise)[4];  // [block][state]
};
using PackedStepKernel = void (*)(const PackedChunk& chunk, const double* coefs);
struct PackedStepKernels {
  // [states in two bytes, in one]; `stored` is how a kernel takes each of them.
  struct {
    Stored stored[4];
    PackedStepKernel run;  // null: the rule has no state that may be packed
  } at[2];
};

// The first pass of a step that depends on whole tensors: the sums of squares of a chunk's directions and of
// its parameters. Nothing is written: the step makes the same direction again.
struct Measured {
  double update, param;
};
using MeasureKernel = Measured (*)(const StepChunk& chunk, const double* coefs);
struct BoundedKernels {
  MeasureKernel at[2];  // [clipped by value or with an L1 penalty]
};
struct MeasureKernels {
  BoundedKernels at[kDTypes];  // [storage]
  int states;                  // so many of the first are read
};

// grad_scale clip_value l1 l2 lr decay ema_decay step; the step's number is what rounding by chance starts
// from
inline constexpr int kClipValue = 1, kL1 = 2, kL2 = 3, kLr = 4, kStep = 7, kCommonCoefs = 8;

// One chunk of a reduction, in the monoid's 16 lanes; chunk results are merged in chunk order by the caller.
enum class Monoid : std::uint8_t { sum, abs_sum, sum_squares, abs_max };
using ReduceKernel = double (*)(const void* x, Index n);
struct ReduceKernels {
  ReduceKernel at[kDTypes];
};

// The kernels below take whole arrays and a range [begin, end) of their elements or rows. params are the
// formula's own, in its order. Where not said otherwise an output may be the same array as an input. With
// `stream` outputs go past the caches; then they are apart from the inputs.
struct ActivationArgs {
  int formula;  // negative: none, y = x + bias; then there is a bias
  const double* params;
  const void* x;
  const void* bias;  // null, or one value for each of the `columns` of x, added first
  Index columns;
  void* y;
  bool stream = false;
};
struct ActivationGradArgs {
  int formula;
  const double* params;
  const void *dy, *x, *y;  // x, y: null where the formula's gradient does not read them
  void* dx;
  bool stream = false;
};
struct DropoutArgs {
  const void* x;
  void* y;
  std::uint64_t seed, offset;
  std::uint32_t last_kept;  // an element stays where its random word is at most this
  double scale;             // of those that stay
};
struct ElementwiseKernels {
  void (*activation)(const ActivationArgs& args, Index begin, Index end);
  void (*activation_grad)(const ActivationGradArgs& args, Index begin, Index end);
  void (*dropout)(const DropoutArgs& args, Index begin, Index end);
  void (*axpy)(double a, const void* x, void* y, Index begin, Index end);  // y += a x
};

struct LossArgs {
  int formula;
  const double* params;
  const void *x, *t;
  const void* weight;  // null, or one factor for each element
  const void* param;   // null, or the formula's one parameter for each element
  void* value;         // null, or the loss of each element
  void* grad;          // null, or grad_scale times its derivative
  double grad_scale;
  bool stream = false;
};
struct ColumnSumArgs {
  const void* x;
  Index columns;      // of x
  Index first, last;  // those to sum
  double* sums;       // sums[first], ..., sums[last - 1] are written
};
struct SumKernels {
  double (*loss)(const LossArgs& args, Index begin, Index end);  // returns the sum
  double (*dot)(const void* x, const void* y, Index n);
  void (*column_sums)(const ColumnSumArgs& args, Index begin_row, Index end_row);
};

struct SoftmaxArgs {
  const void* x;
  void* y;
  Index columns;
  void* scratch = nullptr;  // room for a row of the calling thread; y is streamed, where that is not null
};
struct SoftmaxGradArgs {
  const void *dy, *y;
  void* dx;
  Index columns;
  bool stream = false;
};
struct CrossEntropyArgs {
  const void* x;              // logits; of nll: log-probabilities
  const Index* target;        // the class of each row; null: probabilities are given
  const void* probabilities;  // of each class of each row; may not be grad
  const void* weight;         // null, or a factor for each class; may not be grad
  void* value;                // null, or the loss of each row
  void* grad;                 // null, or grad_scale times its derivative
  Index columns;
  Index ignore_index;  // a row of this class counts nothing
  double label_smoothing, grad_scale;
  void* scratch = nullptr;  // as in SoftmaxArgs, for grad
};
struct RowKernels {
  void (*softmax)(const SoftmaxArgs& args, Index begin_row, Index end_row);
  void (*log_softmax)(const SoftmaxArgs& args, Index begin_row, Index end_row);
  void (*softmax_grad)(const SoftmaxGradArgs& args, Index begin_row, Index end_row);
  void (*log_softmax_grad)(const SoftmaxGradArgs& args, Index begin_row, Index end_row);
  double (*cross_entropy)(const CrossEntropyArgs& args, Index begin_row, Index end_row);  // returns the sum
  double (*nll)(const CrossEntropyArgs& args, Index begin_row, Index end_row);
};

// Batch normalisation of a matrix whose columns are channels; arrays of a number for each are of its dtype.
struct BatchNormArgs {
  const void* x;
  Index columns;
  const void* mean;  // null: 0
  const void* rstd;
  const void *weight, *bias;  // null: 1, 0
  void* y;
  bool stream = false;
};
struct BatchNormGradArgs {
  const void *dy, *x;
  Index columns;
  const void *mean, *rstd, *weight;
  const void *center, *slope;  // what follows from the sums of the gradient
  void* dx;
  bool stream = false;
};
struct ColumnPairArgs {
  const void *x, *dy, *mean;  // dy and mean: of grad_sums
  Index columns;              // of x
  Index first, last;          // those to take
  double *a, *b;  // [first, last) are written: mean and m2, or the sums of dy and of dy (x - mean)
};
struct BatchNormKernels {
  void (*moments)(const ColumnPairArgs& args, Index begin_row, Index end_row);
  void (*grad_sums)(const ColumnPairArgs& args, Index begin_row, Index end_row);
  void (*normalize)(const BatchNormArgs& args, Index begin_row, Index end_row);
  void (*normalize_grad)(const BatchNormGradArgs& args, Index begin_row, Index end_row);
};

// Element (i, j) of a matrix operand lies at data + i row + j col; strides in elements, of any sign.
struct Operand {
  const void* data;
  Index row, col;
};

// What becomes of a finished piece of an m x n product, in this order. Other m x n arrays are C-contiguous.
// The default leaves it as it is.
struct Epilogue {
  const void* bias = nullptr;   // n values, added to each row
  void* kept_input = nullptr;   // receives what the activation sees
  int activation = -1;          // formula; negative: none
  void* kept_output = nullptr;  // receives what the activation returns, before dropout
  bool dropout = false;         // of element i n + j by its word of the Philox stream (seed, offset)
  std::uint64_t seed = 0, offset = 0;
  std::uint32_t last_kept = 0;
  double kept_scale = 1.0;  // of the elements that stay
  int gradient = -1;        // formula: times its derivative at x or y; negative: none
  const void *x = nullptr, *y = nullptr;
  const double* params = nullptr;  // of the activation or the gradient
  const void* residual = nullptr;  // c = residual + residual_scale c
  double residual_scale = 1.0;
};

// Which operand is often zero: A in some neighbouring rows, or B in some neighbouring columns.
enum class Zeros : std::uint8_t { none, rows, columns };

// C = epilogue(A B + beta C), A: m x k, B: k x n, C: m x n with rows of contiguous elements c_row apart.
struct GemmArgs {
  Index m, n, k;
  Operand a, b;
  void* c;
  Index c_row;
  double beta = 0.0;  // 0: C is not read
  bool bf16 = false;  // A and B are rounded to bfloat16, sums stay float; float only
  Epilogue epilogue = {};
  Zeros zeros = Zeros::none;       // by GemmKernels::find_zeros: steps of k may be left out
  const void* packed_a = nullptr;  // the whole of A, by GemmKernels::pack_a; null: each run packs for itself
  const void* packed_b = nullptr;  // the same of B
  const void* lists = nullptr;     // of B's columns, by GemmKernels::make_lists; null: each run lists its own
};
using GemmKernel = void (*)(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col,
                            Index end_col, void* scratch);
struct GemmKernels {
  // Rows [begin_row, end_row) and columns [begin_col, end_col) of C. scratch: scratch_bytes,
  // 64-byte aligned, of the calling thread. Sums over k are taken in an order that depends on m, n, k and the
  // strides alone, so no cut of C changes a bit.
  GemmKernel run;
  GemmKernel run_bf16;  // A and B rounded to bfloat16, sums in float; null for double
  Index rows, columns;  // of the register tile: cuts at their multiples waste nothing
  Index scratch_bytes;
  // A packed once for all runs, of so many columns each: how many elements that takes, or 0 where runs do as
  // well without. pack_a packs rows of A, in whole tiles.
  Index (*packed_a_size)(const GemmArgs& args, Index columns);
  void (*pack_a)(const GemmArgs& args, Index begin_row, Index end_row, void* packed);
  // The same of B, for runs of so many rows and of whole tiles of columns.
  Index (*packed_b_size)(const GemmArgs& args, Index rows);
  void (*pack_b)(const GemmArgs& args, Index begin_col, Index end_col, void* packed);
  // Which operand to leave steps out of, by a glance at a few of its places. No bit of C depends on it.
  Zeros (*find_zeros)(const GemmArgs& args);
  // Lists of the steps that are left of B's columns, for runs of all columns: bytes, 0 where there are none.
  // make_lists lists whole tiles of columns.
  Index (*lists_bytes)(const GemmArgs& args);
  void (*make_lists)(const GemmArgs& args, Index begin_col, Index end_col, void* lists);
  // The epilogue alone, of rows that C has the sums of.
  void (*finish)(const GemmArgs& args, Index begin_row, Index end_row);
};

// Part of a linear layer whose samples are often zero: some of its outputs, in strips of StripKernels::width,
// and the inputs of one block of k. A strip is (inputs, width), and strips lie one after the other; with
// zeros for outputs and inputs that do not exist.
struct StripShare {
  Index depth, inputs;    // those that exist, and those of a strip
  Index strips, outputs;  // outputs: those that exist
  Index rows;             // of the batch
  void* x;                // (rows, depth) of the samples, rows x_row apart, with zeros behind
  Index x_row;
  void* lists;         // room of list_bytes
  const void* weight;  // strips
  bool finite;         // it is known to be
  void* sums;          // forward: (rows, strips width), rows sums_row apart; room for an even number of rows
  Index sums_row;
  const void* gradient;  // by the layer's result: (rows, outputs), rows gradient_row apart
  Index gradient_row;
};
struct StripKernels {
  Index width;               // outputs of a strip; 0: this level leaves no zeros out, and has but `depth`
  Index together;            // strips whose gradients are best computed together
  Index most_rows;           // of a batch: its gradient is one sum
  Index too_few;             // rows or outputs, whose products are summed in another order
  Index (*depth)(Index in);  // inputs of a block, of so many in all
  void (*place)(StripShare& share, Index depth);  // sets depth, inputs and x_row
  Index (*list_bytes)(const StripShare& share);
  // A strip of a C-contiguous weight with so many inputs in all, from the share's first on, and back.
  void (*fill)(const StripShare& share, const void* weight, Index in, Index outputs, void* strip);
  void (*restore)(const StripShare& share, const void* strip, Index in, Index outputs, void* weight);
  // X W' over the share's inputs. No bit of it depends on what is left out, as in GemmKernels.
  void (*forward)(const StripShare& share);
  // Rows [begin, end) of the share's sums to those of C, or added to them.
  void (*join)(const StripShare& share, bool add, void* c, Index c_row, Index begin, Index end);
  void (*list_columns)(const StripShare& share);  // of X, for the functions below
  // Some strips of the gradient by the result, side by side: (rows, strips width).
  void (*pack)(const StripShare& share, Index first, Index strips, void* panel);
  // Inputs [begin, end), from a multiple of four on, of the same strips of the weight's gradient:
  // (strips, end - begin, width).
  void (*weight_gradient)(const StripShare& share, const void* panel, Index strips, Index begin, Index end,
                          void* piece);
  // For each output of a strip the sum of its squares, as Monoid::sum_squares has them.
  void (*squares)(const StripShare& share, const void* strip, double* sums);
};

// What the machine does at best, for benchmarks to compare with.
struct CeilingKernels {
  void (*copy)(const float* x, float* y, Index n);  // past the caches
  void (*multiply_add_chains)(float* sum);          // so many operations in registers:
  double operations;                                // a multiply-add counts as two
};

using MathKernel = void (*)(const void* x, void* y, Index n);
struct MathKernels {
  MathKernel at[kComputeTypes];
};

struct KernelTable {
  const char* isa;
  const StepKernels* step;                // [rule]
  const PackedStepKernels* packed_step;   // [rule]
  const MeasureKernels* measure;          // [rule]
  const ReduceKernels* reduce;            // [Monoid]
  const SumKernels* sums;                 // [compute type]
  const RowKernels* rows;                 // [compute type]
  const BatchNormKernels* batch_norm;     // [compute type]
  const ElementwiseKernels* elementwise;  // [storage type]
  const GemmKernels* gemm;                // [compute type]
  const StripKernels* strips;             // [compute type]
  GemmKernel bf16_pairs;                  // what to use as run_bf16; null where the CPU lacks it
  const PackingKernels* packing;
  const MathKernels* math;         // [function of math.hpp], for the accuracy tests
  const CeilingKernels* ceilings;  // for benchmarks
};

// The table in use. set_isa returns false when the level is not built in or this CPU lacks it.
const KernelTable& kernels();
bool set_isa(const char* name);

// Names of the levels that this build has and this CPU runs, best first; null-terminated.
const char* const* available_isas();
// Set when FASTOPT_ISA asked for a level that is not available: its value, else null.
const char* rejected_isa();

}  // namespace fastopt
