// A program's first layer in strips: when a run takes its weight over, and what its steps do with it.
#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "core/chunks.hpp"
#include "core/program.hpp"

namespace fastopt {
namespace {

constexpr Index kLeastSteps = 8;  // worth moving weight and states there and back
// Of a weight that threads should have parts of, and that may be kept twice for a while.
constexpr Index kLeastBytes = Index(1) << 17, kMostBytes = Index(1) << 24;
constexpr Index kGlance = 32;  // samples that are looked at

}  // namespace

// Whether this step has the first layer in strips, which are taken or given back accordingly.
bool Program::use_strips(const ProgramRun& run, Index step, const Batch& batch) {
  if (strips_.taken()) {
    if (strips_.takes(batch.samples)) return true;
    give_back_strips();
  } else if (step == 0 && run.steps >= kLeastSteps && run.repeat == 1 && std::isinf(run.max_norm) &&
             may_use_strips(batch.samples) && finds_zeros(batch)) {
    take_strips(batch.samples);
  }
  return strips_.taken();
}

// Nothing but this program's updates may want the weight or the optimizer's states before the run's end, and
// no gradients that are stored.
bool Program::may_use_strips(Index rows) const {
  const PlacedLayer& layer = layers_.front();
  const ProgramParameter& weight = layer.weight;
  if (layer.kind != LayerKind::linear || weight.plan < 0 || weight.grad || uses_ != 1 || bf16_) return false;
  for (const ProgramPlan& plan : plans_)
    if (std::any_of(plan.grads.begin(), plan.grads.end(), [](const void* g) { return g; })) return false;
  const PlanTensor& tensor = plans_[std::size_t(weight.plan)].plan->tensors()[std::size_t(weight.tensor)];
  const Index bytes = tensor.n * item_;
  return tensor.p == weight.data && tensor.n == layer.in * layer.out && tensor.dtype == dtype_ &&
         !tensor.packing.any() && bytes >= kLeastBytes && bytes <= kMostBytes && row_tasks(rows).layer > 0;
}

// By a glance at the first samples, for both products that leave zeros out.
bool Program::finds_zeros(const Batch& batch) {
  if (batch.samples < kGlance) return false;
  PlacedLayer layer = layers_.front();
  const Index bytes = layer.in * item_;
  char* const x = x_room_.reserve(kGlance * bytes);
  copy_samples(batch, bytes, 0, kGlance, x);
  layer.input = x;
  const auto find = kernels().gemm[int(dtype_)].find_zeros;
  return find(forward_args(layer, kGlance, false)) == Zeros::rows &&
         find(weight_args(layer, kGlance)) == Zeros::columns;
}

// Where there are too few shares for the threads, or too little memory, nothing is taken.
void Program::take_strips(Index rows) {
  const PlacedLayer& layer = layers_.front();
  const StripKernels& kernel = kernels().strips[int(dtype_)];
  const Index shares = Strips::shares_for(kernel, layer.in, layer.out, rows, num_threads());
  if (shares == 0) return;
  lock_plans();
  const PlanTensor& tensor =
      plans_[std::size_t(layer.weight.plan)].plan->tensors()[std::size_t(layer.weight.tensor)];
  std::vector<void*> arrays{tensor.p};
  for (void* const state : tensor.states)
    if (state) arrays.push_back(state);
  if (tensor.ema) arrays.push_back(tensor.ema);
  try {
    strips_.take(dtype_, kernel, layer.in, layer.out, rows, shares, std::move(arrays));
  } catch (const std::bad_alloc&) {
    locks_.clear();
  }
}

void Program::give_back_strips() {
  strips_.give_back();
  locks_.clear();
}

// All layers, of which the first leaves the shares' parts of its sums for the second to join.
void Program::forward_strips(const Batch& batch) {
  const PlacedLayer& layer = layers_.front();
  const Index rows = batch.samples, bytes = layer.in * item_;
  parallel_for(strips_.shares(), true, [&](Index share) {
    strips_.forward(share, rows, [&](Index begin, Index end, char* to, Index row) {
      copy_parts(batch, bytes, begin * item_, end * item_, 0, rows, to, row);
    });
  });
  forward(1, rows, nullptr, [&](Index begin, Index end) { strips_.join(layer.product, begin, end); });
}

void Program::run_strip_task(Index share, Index rows, const double* coefs) {
  const PlacedLayer& layer = layers_.front();
  const StepPlan& plan = *plans_[std::size_t(layer.weight.plan)].plan;
  const PlanTensor& tensor = plan.tensors()[std::size_t(layer.weight.tensor)];
  const double* const row = row_of(layer.weight, coefs);
  strips_.weight_gradient(share, rows, layer.gradient, tasks_square(layer), [&](const Strips::Piece& piece) {
    void* const* at = piece.at;
    StepChunk chunk{*at++, piece.gradient, {}, nullptr, piece.n};
    for (int s = 0; s < 4; ++s)
      if (tensor.states[s]) chunk.states[s] = *at++;
    if (tensor.ema) chunk.ema = *at;
    plan.update_chunk(chunk, dtype_, row);
  });
}

}  // namespace fastopt
