// A program's first layer in strips: when a run takes its weight over, and what its steps do with it.
#include <algorithm>
#include <utility>

#include "core/chunks.hpp"
#include "core/program.hpp"

namespace fastopt {
namespace {

constexpr Index kLeastSteps = 8;               // worth moving weight and states there and back
constexpr Index kLeastBytes = Index(1) << 17;  // of a weight that threads should have parts of
constexpr Index kGlance = 32;                  // samples that are looked at

}  // namespace

// Whether this step has the first layer in strips, which are taken or given back accordingly.
bool Program::use_strips(const ProgramRun& run, Index step, const Batch& batch) {
  const Index rows = batch.samples;
  const int threads = num_threads();  // another thread may change it
  if (strips_.taken()) {
    if (rows <= strips_.rows() && Strips::fits(dtype_, layers_.front().out, rows)) return true;
    give_back_strips();
  } else if (step == 0 && run.steps >= kLeastSteps && run.repeat == 1 && may_use_strips(rows, threads) &&
             finds_zeros(batch)) {
    take_strips(rows, threads);
    return true;
  }
  return false;
}

// Nothing but this program's updates may want the weight or the optimizer's states before the run's end, and
// no gradients that are stored.
bool Program::may_use_strips(Index rows, int threads) const {
  const PlacedLayer& layer = layers_.front();
  const ProgramParameter& weight = layer.weight;
  if (layer.kind != LayerKind::linear || weight.plan < 0 || weight.grad || uses_ != 1 || bf16_) return false;
  for (const ProgramPlan& plan : plans_)
    if (std::any_of(plan.grads.begin(), plan.grads.end(), [](const void* g) { return g; })) return false;
  const PlanTensor& tensor = plans_[std::size_t(weight.plan)].plan->tensors()[std::size_t(weight.tensor)];
  return tensor.p == weight.data && tensor.n == layer.in * layer.out && tensor.dtype == dtype_ &&
         !tensor.packing.any() && tensor.n * item_ >= kLeastBytes && row_tasks(rows).layer > 0 &&
         Strips::shares_for(dtype_, layer.in, layer.out, rows, threads) > 0;
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

void Program::take_strips(Index rows, int threads) {
  const PlacedLayer& layer = layers_.front();
  lock_plans();
  const PlanTensor& tensor =
      plans_[std::size_t(layer.weight.plan)].plan->tensors()[std::size_t(layer.weight.tensor)];
  std::vector<void*> arrays{tensor.p};
  for (void* const state : tensor.states)
    if (state) arrays.push_back(state);
  if (tensor.ema) arrays.push_back(tensor.ema);
  strips_.take(dtype_, layer.in, layer.out, rows, threads, std::move(arrays));
}

void Program::give_back_strips() {
  if (!strips_.taken()) return;
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
