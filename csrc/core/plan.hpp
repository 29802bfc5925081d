// A step plan: many tensors cut into chunks once. A chunk is the unit of a CPU task and of a CUDA block.
#pragma once

#include <mutex>
#include <vector>

#include "core/dispatch.hpp"
#include "math.hpp"

namespace fastopt {

struct PlanTensor {
  void* p;
  void* states[4];
  void* ema;  // null: no average is kept
  Index n;
  DType dtype;
  Packing packing = {};
};

// The norm of arrays whose norms these are: NaN where one is NaN.
FO_HD double joint_norm(const double* norms, Index n) {
  double largest = 0.0;
  for (Index i = 0; i < n; ++i) {
    if (norms[i] != norms[i]) return norms[i];
    largest = norms[i] > largest ? norms[i] : largest;
  }
  if (n == 1 || largest == 0.0 || !is_finite(largest)) return largest;
  double squares = 0.0;  // of quotients, which cannot overflow
  for (Index i = 0; i < n; ++i) squares += (norms[i] / largest) * (norms[i] / largest);
  return largest * sqrt(squares);
}
// What scales gradients of this norm so that it is at most max_norm, as in torch.
FO_HD double clip_factor(double norm, double max_norm) {
  const double factor = max_norm / (norm + 1e-6);
  return factor > 1.0 ? 1.0 : factor;
}

struct PlanChunk {
  std::int32_t tensor;
  Index begin, end;
};

// The chunks of all tensors, in their order; each of at most `chunk` elements.
std::vector<PlanChunk> cut(const std::vector<PlanTensor>& tensors, Index chunk);

class StepPlan {
 public:
  StepPlan(int rule, std::vector<PlanTensor> tensors);

  const std::vector<PlanTensor>& tensors() const { return tensors_; }

  // One optimizer step of every tensor with a gradient (null: skipped). Row rows[t] of coefs, `width` wide,
  // holds the coefficients of tensor t; without rows all use the first. factors: null, or three for each
  // tensor, as in Factors.
  void step(const void* const* grads, const double* coefs, Index width, const std::int32_t* rows,
            const double* factors = nullptr);

  // The first pass of a step that depends on whole tensors (see MeasureKernel): out receives the L2 norm of
  // each tensor's direction, then of each parameter; 0 for one without a gradient. As fixed as `norm`.
  void measure(const void* const* grads, const double* coefs, Index width, const std::int32_t* rows,
               double* out);

  // The norm of all gradients together: ord 1, 2 or infinity. Chunks and merge order are fixed, so the
  // result does not depend on the number of threads.
  double norm(const void* const* grads, double ord);

  // The L2 norm of each tensor's gradient, of each parameter; 0 where there is none. As fixed as `norm`.
  void norms(const void* const* grads, double* out);
  void param_norms(double* out);

  // The part of a step that updates elements [begin, end) of one tensor, on the calling thread: for callers
  // that cut the work themselves and hold the lock meanwhile. grad: of element `begin`; row: the tensor's
  // coefficients. Of a tensor with states in bytes pieces begin at a multiple of kGroup.
  void update_piece(Index tensor, Index begin, Index end, const void* grad, const double* row) const;
  // The same of elements that lie elsewhere meanwhile, of a tensor that has nothing packed.
  void update_chunk(const StepChunk& chunk, DType dtype, const double* row) const;
  std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }

 private:
  template <class F>
  void for_each_chunk(const void* const* grads, F&& f);
  // update_piece of a tensor in fewer bytes than it is computed with.
  void update_packed(Index tensor, Index begin, Index end, const void* grad, const double* row) const;
  PackedStepKernel packed_kernel(const PlanTensor& tensor, const double* row) const;
  // The same a tile at a time: unpacked, updated in cache, and packed.
  void update_tiles(Index tensor, Index begin, Index end, const void* grad, const double* row) const;
  // What a chunk adds to `measure`. grad: of its first element.
  Measured measure_piece(const PlanChunk& chunk, const void* grad, const double* row) const;
  Measured measure_packed(const PlanChunk& chunk, const void* grad, const double* row) const;
  void reduce_chunks(Monoid monoid, const void* const* arrays);
  void join_chunks(const std::vector<double>& parts, double* out) const;
  StepChunk piece(Index tensor, Index begin, Index end, const void* grad) const;

  int rule_;
  std::vector<PlanTensor> tensors_;
  std::vector<PlanChunk> chunks_;
  std::vector<double> partials_;        // of a norm, one per chunk
  std::vector<double> param_partials_;  // of the second norm of `measure`
  Index elements_ = 0;
  std::mutex mutex_;  // two Python threads may step the same optimizer; the second waits
};

}  // namespace fastopt
