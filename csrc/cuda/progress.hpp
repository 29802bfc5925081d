// Where a run of a device program stands: it lies in device memory, and a kernel at the end of each step
// moves it on, so that equal steps are replays of one captured graph.
#pragma once

#include "core/array.hpp"
#include "cuda/runtime.hpp"

namespace fastopt {

struct Progress {
  Index step = 0, steps = 0;      // done, and of the run
  Index first = 0;                // sample of the step's batch
  std::uint64_t mask_offset = 0;  // of the step's first dropout mask
  const double* coefs = nullptr;  // of all steps
  double* losses = nullptr;       // of all steps
  double last_loss = 0.0;
  // Of the step at work.
  double loss = 0.0;  // in the program's own dtype
  double divisor = 1.0, norm = 0.0, grad_scale = 1.0;
  // Why the run changes nothing any more.
  enum Stop : std::int32_t { none, found, settled };
  std::int32_t stopped = none;
  unsigned long long stop_at = ~0ull;  // smallest element that is to blame
  double stop_value = 0.0;
};

// Stops the run where one of the classes that its steps will see is neither ignored nor in [0, columns):
// those of `samples` samples of `repeat` rows, order[0], order[1], ... or from sample `first` on. stop_at:
// the element of target.
struct ClassCheck {
  const Index* target;
  const Index* order;  // null: as they lie
  Index first, samples, repeat, columns, ignore_index;
};
void check_classes_on_device(const ClassCheck& check, Progress* progress, CudaStream stream);

// Stops the run where one of n outputs is no probability.
void check_probabilities_on_device(DType dtype, const void* y, Index n, Progress* progress,
                                   CudaStream stream);

// The norm and the clip factor of gradients in several parts with these norms, each left where it is told.
void join_norms_on_device(const double* norms, Index n, double max_norm, double* norm, double* grad_scale,
                          CudaStream stream);

// The end of a step.
struct Advance {
  DType dtype;         // of the loss
  const void* output;  // of the model, where stop_at is one of its elements; else null
  double* coefs;       // receives the `width` coefficients of the next step
  Index width;
  Index samples, masks;  // of a step
};
void advance_on_device(const Advance& advance, Progress* progress, CudaStream stream);

}  // namespace fastopt
