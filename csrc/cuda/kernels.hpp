// The CUDA kernels as host code calls them. Pointers are to device memory where not said otherwise; work is
// queued on the stream, and nothing waits for it. A CUDA error is a std::runtime_error with CUDA's message.
#pragma once

#include <vector>

#include "core/batch_norm.hpp"
#include "core/plan.hpp"
#include "cuda/runtime.hpp"

namespace fastopt {

// What a step reads from device memory, so that a captured graph replays with new values.
struct DeviceStep {
  const void* const* grads;  // one for each tensor; null: skipped
  const double* coefs;       // rows of `width` coefficients
  Index width;
  const std::int32_t* rows = nullptr;       // null, or the row of each tensor; without, all use the first
  const double* grad_scale = nullptr;       // null, or one more factor of all gradients
  bool scale_each = false;                  // grad_scale has a factor for each tensor
  const double* factors = nullptr;          // null, or three for each tensor, as in Factors
  const std::int32_t* found_inf = nullptr;  // null, or a flag: the step changes nothing where it is set
};

// What a norm of all gradients leaves in device memory for the step that follows; null: not wanted.
struct DeviceNorm {
  const void* const* grads;           // one for each tensor; null: skipped
  double max_norm;                    // infinite: grad_scale becomes 1
  double* norm = nullptr;             // the norm
  double* grad_scale = nullptr;       // what scales gradients of this norm to max_norm
  std::int32_t* found_inf = nullptr;  // 1 where the norm is not finite, else 0
};

// What an attempt's coefficients are chosen from, and where they go; both in device memory.
struct CoefChoice {
  const double* table;
  double* chosen;
};

// A few values that a launch takes along, so that they need no copy to device memory. Two of these and a
// DeviceStep, or a Judge, fit into the 4 KiB of arguments that every driver takes.
template <class T>
struct Inline {
  static constexpr Index kSize = 160;
  T at[kSize];
};

struct Judge;      // cuda/attempts.hpp
struct LossScale;  // core/loss_scale.hpp

// Many tensors with their chunks in device memory, put there once: a step of all of them is one launch. What
// follows uses the plan's own device memory, so a plan is for one stream at a time.
class DevicePlan {
 public:
  // The tensors' own pointers are to device memory; the vector is copied.
  DevicePlan(int rule, const std::vector<PlanTensor>& tensors);
  void step(const DeviceStep& step, CudaStream stream) const;
  // Whether the update of a tensor is a sum of multiples of parameter and gradient, unless it is clipped or
  // has an L1 penalty: a product may then do it (formulas/common.hpp: linear_update).
  bool is_linear(Index tensor) const { return linear_[std::size_t(tensor)]; }

  // In one launch, with the bits of StepPlan::norm; monoid: abs_sum, sum_squares or abs_max.
  void norm(Monoid monoid, const DeviceNorm& norm, CudaStream stream) const;

  // The L2 norm of each tensor's gradient, of each parameter, in one launch, with StepPlan's bits. `grads` is
  // in host memory, as below.
  void norms_from_host(const void* const* grads, double* out, CudaStream stream);
  void param_norms(double* out, CudaStream stream) const;

  // The same with `grads`, `rows` and `coefs` (n_coefs of them) in host memory, which may change once the
  // call is back. They travel with the launch where they are few; many go to device memory first, in launches
  // of their own, addresses and rows only where they differ from the last call's.
  void step_from_host(DeviceStep step, Index n_coefs, CudaStream stream);
  // StepPlan::measure in one launch, with its bits.
  void measure_from_host(DeviceStep step, Index n_coefs, double* out, CudaStream stream);
  void norm_from_host(Monoid monoid, DeviceNorm norm, CudaStream stream);

  // Steps in a graph that the caller captures, where nothing may be allocated: makes room for rows of `width`
  // coefficients before that.
  void prepare_capture(Index width, CudaStream stream);
  bool is_prepared() const { return bool(captured_.coefs); }
  // The step that each replay repeats, with the coefficients and rows of the last `advance_captured`; those
  // of `step` are not read. The gradients' addresses, in host memory here, become part of the graph.
  void capture_step(const void* const* grads, DeviceStep step, CudaStream stream);
  // What the next replay on this stream reads; rows: null, or each tensor's.
  void advance_captured(const double* coefs, Index n_rows, const std::int32_t* rows, CudaStream stream);

  // The same where only the device knows how many steps it has taken (cuda/attempts.hpp), kMostAhead numbers
  // of them at most: room for such coefficients, with a table that has kAheadHead numbers first (the length
  // of an entry, how many there are, and the number of steps before the first).
  static constexpr Index kMostAhead = 16, kAheadHead = 3;
  CoefChoice prepare_ahead(Index width, CudaStream stream);
  // Coefficients for `counts` numbers of steps from `first` on, n_rows each. The table goes to device memory
  // or, where `own` is given, there, for an attempt to take along.
  void advance_ahead(const double* coefs, Index n_rows, Index counts, Index first, const std::int32_t* rows,
                     double* own, CudaStream stream);
  Index ahead_size(Index n_rows, Index counts) const {
    return kAheadHead + counts * n_rows * captured_.width;
  }

  // The last norm of an attempt, whose last block also decides what follows. Of a plan with elements.
  void judge_from_host(const void* const* grads, const Judge& judge, const Inline<double>& own_tables,
                       CudaStream stream);
  // Divides gradients by the scale; where one is not finite, `found` and the scale's become 1.
  void unscale_from_host(const void* const* grads, LossScale* scale, double* found, CudaStream stream);
  bool has_elements() const { return norm_chunks_size_ > 0; }
  Index size() const { return size_; }  // tensors

 private:
  void launch_step(const DeviceStep& step, const Inline<double>& coefs, const Inline<const void*>& grads,
                   CudaStream stream) const;
  void launch_norm(Monoid monoid, const DeviceNorm& norm, const Inline<const void*>& grads,
                   CudaStream stream) const;
  void launch_norms(bool of_params, const void* const* grads, const Inline<const void*>& own, double* out,
                    CudaStream stream) const;
  // Puts what a step has in host memory into device memory, or into what travels with its launch.
  void place(DeviceStep& step, Index n_coefs, Inline<double>& coefs, Inline<const void*>& grads,
             CudaStream stream);
  // The addresses in device memory, or null where they are few enough to travel with a launch, in `own`.
  const void* const* place_grads(const void* const* grads, Inline<const void*>& own, CudaStream stream);
  const void* const* place_captured_grads(const void* const* grads, CudaStream stream);
  void step_captured(const void* const* grads, DeviceStep step, const Inline<const void*>& own,
                     CudaStream stream) const;
  void place_captured_rows(const std::int32_t* rows, CudaStream stream);

  int rule_;
  Index size_;
  std::vector<bool> linear_;            // of each tensor
  bool narrow_ = false, wide_ = false;  // there are tensors that compute in float, in double
  bool packed_ = false;                 // or that are packed
  Index chunks_size_ = 0, norm_chunks_size_ = 0;
  DeviceArray<PlanTensor> tensors_;
  DeviceArray<PlanChunk> chunks_, norm_chunks_;
  DeviceArray<std::uint32_t> noise_;
  DeviceArray<double> partials_;       // of two norms, one for each of their chunks
  DeviceArray<unsigned> blocks_done_;  // of the running norm; of running norms one for each tensor

  // What the last call from the host has left in device memory.
  std::vector<const void*> known_grads_;
  std::vector<std::int32_t> known_rows_;
  DeviceArray<const void*> grads_;
  DeviceArray<std::int32_t> rows_;
  DeviceArray<double> coefs_;
  Index coefs_room_ = 0;

  // What captured steps read: rows of coefficients, as many as there are tensors; the row of each.
  struct Captured {
    Index width = 0;
    DeviceArray<double> coefs, ahead;
    DeviceArray<std::int32_t> rows;
    DeviceArray<const void*> grads;
    std::vector<std::int32_t> known_rows;
  } captured_;
};

// The arguments of the CPU's kernels over n elements or over rows; `params` stays a host pointer, `stream`
// and `scratch` of the arguments are not read. mask_offset: null, or what is added to args.offset.
void activation_on_device(DType dtype, const ActivationArgs& args, Index n, CudaStream stream);
void activation_grad_on_device(DType dtype, const ActivationGradArgs& args, Index n, CudaStream stream);
void dropout_on_device(DType dtype, const DropoutArgs& args, Index n, const std::uint64_t* mask_offset,
                       CudaStream stream);
void axpy_on_device(DType dtype, double a, const void* x, void* y, Index n, CudaStream stream);

// Where a reduction leaves its sum / divisor / *divisor_at.
struct DeviceSum {
  void* out;  // one element of the arrays' dtype; null: not wanted
  double divisor = 1.0;
  const double* divisor_at = nullptr;  // null, or one more divisor, of the gradient too
};

// Bytes of scratch for the reductions of n elements or rows below. The first 64 of them are 0 before the
// first use and are left so; kernels on one stream may share their scratch.
Index sum_scratch_bytes(Index n);

// With the bits of the CPU's.
void reduce_on_device(DType dtype, Monoid monoid, const void* x, Index n, double* out, void* scratch,
                      CudaStream stream);
void dot_on_device(DType dtype, const void* x, const void* y, Index n, double* out, void* scratch,
                   CudaStream stream);
void loss_on_device(DType dtype, const LossArgs& args, Index n, const DeviceSum& sum, void* scratch,
                    CudaStream stream);

// out, or with `add` what it has and, the sum of each column.
void column_sums_on_device(DType dtype, const void* x, Index rows, Index columns, void* out, bool add,
                           void* scratch, CudaStream stream);
Index column_sums_scratch_bytes(Index rows, Index columns);

// Sums of a row are taken in an order that follows from its length and from the arrays' alignment.
void softmax_on_device(DType dtype, const SoftmaxArgs& args, bool log, Index rows, CudaStream stream);
void softmax_grad_on_device(DType dtype, const SoftmaxGradArgs& args, bool log, Index rows,
                            CudaStream stream);

// A class that is neither ignored nor one of the columns makes the loss and the gradient of its row NaN.
void cross_entropy_on_device(DType dtype, const CrossEntropyArgs& args, bool log_probabilities, Index rows,
                             const DeviceSum& sum, void* scratch, CudaStream stream);
// What the mean divides by: the summed weights of the classes that are not ignored, or the rows where
// probabilities are given.
void class_divisor_on_device(DType dtype, const CrossEntropyArgs& args, Index rows, double* divisor,
                             void* scratch, CudaStream stream);

// core/batch_norm.hpp on a device: arrays of float or double. Scratch as for sums; sums over rows are taken
// in an order that follows from the shape.
Index batch_norm_scratch_bytes(Index rows, Index columns);
void batch_statistics_on_device(DType dtype, const void* x, Index rows, Index columns, double eps,
                                const BatchSaved& saved, void* scratch, CudaStream stream);
void running_rstd_on_device(DType dtype, const void* running_var, Index columns, double eps, void* rstd,
                            CudaStream stream);
// batches: null, or how many were tracked, which is counted up. stopped: null, or a flag that calls it off.
void track_on_device(DType dtype, const BatchSaved& saved, Index columns, double momentum, Index* batches,
                     const std::int32_t* stopped, void* running_mean, void* running_var, CudaStream stream);
void batch_norm_sums_on_device(DType dtype, const void* dy, const void* x, Index rows, Index columns,
                               const BatchSaved& saved, const BatchGradients& gradients, void* scratch,
                               CudaStream stream);
void normalize_on_device(DType dtype, const BatchNormArgs& args, Index rows, CudaStream stream);
void normalize_grad_on_device(DType dtype, const BatchNormGradArgs& args, Index rows, CudaStream stream);

// Types of elements that can be copied from; a bool is a u8. The first four are DType's.
enum class ItemType : std::uint8_t { f32, f64, bf16, f16, i8, u8, i16, u16, i32, u32, i64, u64 };

// A strided array copied to another of the same shape, as its type: a DType or i64. Of a type's own elements
// every bit is kept.
struct DeviceCopy {
  static constexpr int kAxes = 8;
  const void* from;
  void* to;
  ItemType from_type, to_type;
  int ndim;
  Index shape[kAxes];
  Index from_strides[kAxes], to_strides[kAxes];  // in elements, of any sign
};
void copy_on_device(const DeviceCopy& copy, CudaStream stream);

// Row i of `to` is row order[first + i] of `from`, or row first + i without an order; *first is in device
// memory, and 0 where `first` is null.
void gather_rows_on_device(const void* from, Index row_bytes, const Index* order, const Index* first,
                           Index rows, void* to, CudaStream stream);

}  // namespace fastopt
