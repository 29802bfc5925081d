// Steps that the device itself takes or leaves out, by whether the gradients under a loss scale are finite:
// the host learns later which they were.
#pragma once

#include <optional>
#include <vector>

#include "core/loss_scale.hpp"
#include "cuda/kernels.hpp"
#include "cuda/queue.hpp"

namespace fastopt {

// Of all attempts so far.
struct AttemptCounts {
  std::uint32_t made = 0, taken = 0;
};

// What the plans' steps read.
struct Verdict {
  std::int32_t found_inf;
  double grad_scale;
  AttemptCounts counts;
};

// What scales the gradients of a plan: one number, or one for each tensor.
struct GradScales {
  const double* at;
  bool each;
};

// What an attempt reads and leaves, in device memory.
struct Attempt {
  std::optional<double> max_norm;
  LossScale* scale;
  const double* norm_before = nullptr;  // becomes the norm where the step is left out; null: NaN does
  double* norm = nullptr;               // with a max_norm
  bool* taken = nullptr;                // null: not wanted
  const double* found = nullptr;  // of gradients that were unscaled before: not 0 where one was not finite
  std::vector<GradScales> scales = {};  // of each plan in place of what follows from scale and max_norm
};

// What is decided once the norms of all plans are known: by what, and where it is left.
struct Judge {
  double* norms;
  Index n;      // plans, and norms of their gradients
  Index last;   // the plan whose norm comes last
  bool limits;  // there is a max_norm
  double max_norm;
  LossScale* scale;
  const double* norm_before;
  double* norm;
  bool* taken;
  const double* found;
  const CoefChoice* choices;
  bool own_tables;  // those of the choices have travelled with the launch, one after the other
  Verdict* verdict;
  unsigned long long* seen;  // in the host's memory
};

// Coefficients of one plan for several numbers of steps: so many rows each, and the row of each tensor.
struct Ahead {
  const double* coefs;
  Index n_rows;
  const std::int32_t* rows;
};

// The attempts of an optimizer's plans, on one stream at a time. The plans outlive it.
class DeviceAttempts {
 public:
  // Makes all room, so that attempts can be captured; waits for the stream.
  DeviceAttempts(std::vector<DevicePlan*> plans, const std::vector<Index>& widths, CudaStream stream);

  // The coefficients of the next attempt for `counts` numbers of steps, from `first` on. They go to the
  // device at once or, where they may travel, with the attempt that is queued next.
  void advance(const std::vector<Ahead>& plans, Index counts, Index first, bool may_travel,
               CudaStream stream);

  // Queues the step of all plans, with gradients whose addresses are in host memory: captured, or to be run
  // at once. What it does with them was said by the last `advance`. Of one plan two launches.
  void step(const std::vector<std::vector<const void*>>& grads, const Attempt& attempt, CudaStream stream);

  // Divides gradients by the scale, where they are. Makes `found` 1, and the scale's, where one is not
  // finite, otherwise 0. One launch a plan.
  static void unscale(const std::vector<DevicePlan*>& plans,
                      const std::vector<std::vector<const void*>>& grads, LossScale* scale, double* found,
                      CudaStream stream);

  // As far as the device has come; does not wait.
  AttemptCounts counts() const;

 private:
  // Queues the norms of `n` plans and what is decided by them.
  void judge(const std::vector<std::vector<const void*>>& grads, Index n, const Attempt& attempt,
             CudaStream stream);
  Verdict* verdict() const { return static_cast<Verdict*>(state_.get()); }
  double* norms() const { return reinterpret_cast<double*>(verdict() + 1); }

  std::vector<DevicePlan*> plans_;
  Index last_ = -1;          // of the plans that have elements; -1: none has
  Pinned seen_;              // the counts, written by the device: to free what follows is to wait for it
  DeviceArray<void> state_;  // the verdict, a norm of each plan
  DeviceArray<CoefChoice> choices_;
  Inline<double> own_tables_ = {};
  bool travels_ = false;  // what the next attempt takes along is in own_tables_
};

void update_scale_on_device(const ScaleUpdate& update, bool found_inf, LossScale* scale, CudaStream stream);

}  // namespace fastopt
