#include "cuda/attempts.hpp"

#include <atomic>
#include <cmath>

#include "cuda/packs.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

struct Judge {
  const double* norms;
  Index n;  // plans, and norms of their gradients
  bool limits;
  double max_norm;
  LossScale* scale;
  const double* norm_before;
  double* norm;
  bool* taken;
  const CoefChoice* choices;
  Verdict* verdict;
  unsigned long long* seen;  // in the host's memory
};

// Of all gradients together, and what scales them: as known_tail in optim/tail.py.
__device__ void decide(const Judge& judge) {
  double norm = judge.limits ? joint_norm(judge.norms, judge.n) : 0.0;
  bool finite = is_finite(norm);
  for (Index i = 0; i < judge.n; ++i) finite = finite && is_finite(judge.norms[i]);
  LossScale& scale = *judge.scale;
  const double inverse = 1.0 / scale.scale;
  norm *= inverse;
  Verdict& verdict = *judge.verdict;
  verdict.grad_scale = judge.limits ? inverse * clip_factor(norm, judge.max_norm) : inverse;
  verdict.found_inf = !finite;
  ++verdict.counts.made;
  verdict.counts.taken += finite;
  if (!finite) scale.found_inf = 1.0;
  if (judge.norm) *judge.norm = finite ? norm : judge.norm_before ? *judge.norm_before : double(NAN);
  if (judge.taken) *judge.taken = finite;
  // In one piece, so that the host never reads one count without the other.
  *static_cast<volatile unsigned long long*>(judge.seen) =
      verdict.counts.made | static_cast<unsigned long long>(verdict.counts.taken) << 32;
}

// The rows that belong to the step that is about to be taken. A graph that is replayed without new ones gets
// the last.
__device__ void choose(const CoefChoice& choice, Index taken_before) {
  const Index size = Index(choice.table[0]), last = Index(choice.table[1]) - 1;
  Index at = taken_before - Index(choice.table[2]);
  if (at < 0) at = 0;
  if (at > last) at = last;
  const double* const row = choice.table + DevicePlan::kAheadHead + at * size;
  for (Index i = threadIdx.x; i < size; i += blockDim.x) choice.chosen[i] = row[i];
}

__global__ void __launch_bounds__(kThreads) judge_kernel(Judge judge) {
  if (threadIdx.x == 0) decide(judge);
  __syncthreads();
  if (judge.verdict->found_inf) return;
  for (Index i = 0; i < judge.n; ++i) choose(judge.choices[i], Index(judge.verdict->counts.taken) - 1);
}

__global__ void update_scale_kernel(ScaleUpdate update, bool found_inf, LossScale* scale) {
  LossScale s = *scale;
  if (found_inf) s.found_inf = 1.0;
  *scale = updated(s, update);
}

}  // namespace
}  // namespace FASTOPT_ISA

DeviceAttempts::DeviceAttempts(std::vector<DevicePlan*> plans, const std::vector<Index>& widths,
                               CudaStream stream)
    : plans_(std::move(plans)) {
  const Index n = Index(plans_.size()), bytes = Index(sizeof(Verdict) + sizeof(LossScale)) + n * 8;
  std::vector<CoefChoice> choices;
  for (Index i = 0; i < n; ++i) choices.push_back(plans_[i]->prepare_ahead(widths[i], stream));
  state_ = device_memory(bytes);
  choices_.reset(static_cast<CoefChoice*>(device_memory((n + 1) * Index(sizeof(CoefChoice))).release()));
  clear_in_device(state_.get(), bytes, stream);
  copy_to_device(choices_.get(), choices.data(), n * Index(sizeof(CoefChoice)), stream);
  seen_.reserve(sizeof(unsigned long long));
  // An attempt of no plan: the kernels are loaded.
  const auto scale = reinterpret_cast<LossScale*>(norms() + n);
  judge({std::nullopt, scale}, 0, stream);
  update_scale_on_device({2.0, 0.5, 1.0}, false, scale, stream);
  synchronize(stream);
}

void DeviceAttempts::step(const std::vector<std::vector<const void*>>& grads, const Attempt& attempt,
                          CudaStream stream) {
  // The largest magnitude shows whether all are finite where no norm is needed.
  const Monoid monoid = attempt.max_norm ? Monoid::sum_squares : Monoid::abs_max;
  for (std::size_t i = 0; i < plans_.size(); ++i)
    plans_[i]->norm_from_host(monoid, {grads[i].data(), INFINITY, norms() + i}, stream);
  judge(attempt, Index(plans_.size()), stream);
  DeviceStep step = {};
  step.grad_scale = &verdict()->grad_scale;
  step.found_inf = &verdict()->found_inf;
  for (std::size_t i = 0; i < plans_.size(); ++i) plans_[i]->capture_step(grads[i].data(), step, stream);
}

void DeviceAttempts::judge(const Attempt& attempt, Index plans, CudaStream stream) {
  Judge judge{norms(),
              plans,
              attempt.max_norm.has_value(),
              attempt.max_norm.value_or(INFINITY),
              attempt.scale,
              attempt.norm_before,
              attempt.norm,
              attempt.taken,
              choices_.get(),
              verdict(),
              reinterpret_cast<unsigned long long*>(seen_.get())};
  launch(judge_kernel, 1, kThreads, 0, stream, judge);
}

AttemptCounts DeviceAttempts::counts() const {
  const std::atomic_ref<unsigned long long> seen(*reinterpret_cast<unsigned long long*>(seen_.get()));
  const unsigned long long both = seen.load();
  return {std::uint32_t(both), std::uint32_t(both >> 32)};
}

void update_scale_on_device(const ScaleUpdate& update, bool found_inf, LossScale* scale, CudaStream stream) {
  launch(update_scale_kernel, 1, 1, 0, stream, update, found_inf, scale);
}

}  // namespace fastopt
