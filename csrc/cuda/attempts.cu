#include "cuda/attempts.hpp"

#include <atomic>
#include <cmath>

#include "cuda/norms.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// Of all gradients together, and what scales them: as known_tail in optim/tail.py.
__device__ void decide(const Judge& judge) {
  double norm = judge.limits ? joint_norm(judge.norms, judge.n) : 0.0;
  bool finite = judge.found ? *judge.found == 0.0 : is_finite(norm);
  if (!judge.found)
#pragma unroll 1
    for (Index i = 0; i < judge.n; ++i) finite = finite && is_finite(judge.norms[i]);
  LossScale& scale = *judge.scale;
  const double inverse = judge.found ? 1.0 : 1.0 / scale.scale;
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

// Copies the rows that belong to the step that is about to be taken. A graph that is replayed without new
// ones gets the last.
__device__ void choose(const double* table, double* chosen, Index taken_before) {
  const Index size = Index(table[0]), last = Index(table[1]) - 1;
  Index at = taken_before - Index(table[2]);
  if (at < 0) at = 0;
  if (at > last) at = last;
  const double* const row = table + DevicePlan::kAheadHead + at * size;
#pragma unroll 1
  for (Index i = threadIdx.x; i < size; i += blockDim.x) chosen[i] = row[i];
}

// By all threads of one block.
__device__ void judge_all(const Judge& judge, const double* own_table) {
  if (threadIdx.x == 0) decide(judge);
  __syncthreads();
  if (judge.verdict->found_inf) return;
#pragma unroll 1
  for (Index i = 0; i < judge.n; ++i) {
    const CoefChoice choice = judge.choices[i];
    choose(judge.own_tables ? own_table : choice.table, choice.chosen,
           Index(judge.verdict->counts.taken) - 1);
    if (judge.own_tables) own_table += DevicePlan::kAheadHead + Index(own_table[0]) * Index(own_table[1]);
  }
}

// The norm that is the last of an attempt's, and what follows from all of them. Where no norm is needed its
// sum of squares is one of zeros, which cannot overflow, and NaN where an element is not finite. Without
// chunks only what follows.
__global__ void __launch_bounds__(kThreads)
    judge_kernel(NormChunks at, const void* const* grads, const __grid_constant__ Judge judge,
                 const __grid_constant__ Inline<const void*> own_grads,
                 const __grid_constant__ Inline<double> own_tables) {
  if (at.chunks) {
    const double factor = judge.limits ? 1.0 : 0.0;
    const auto read = [factor](double x) { return factor * x; };
    double norm;
    if (!norm_of_all<SumSquares<double>>(at, grads ? grads : own_grads.at, read, norm)) return;
    if (threadIdx.x == 0) judge.norms[judge.last] = norm;
  }
  judge_all(judge, own_tables.at);
}

// N neighbouring elements of a gradient divided by a scale; whether they were finite.
template <int N, class S>
__device__ __forceinline__ bool unscale(S* g, Compute<S> inverse) {
  Pack<S, N> pack = load_pack<N>(g);
  bool finite = true;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const Compute<S> value = load(pack.at[k]);
    finite = finite && is_finite(value);
    pack.at[k] = Store<S>::from(value * inverse);
  }
  store_pack(g, pack);
  return finite;
}

// Accesses are packs already: unrolled as well the loops would make the kernel twice as large.
template <class S>
__device__ bool unscale_chunk(const void* grad, const PlanChunk& chunk, double inverse) {
  constexpr int kPack = kWidest / int(sizeof(S));
  S* const g = static_cast<S*>(const_cast<void*>(grad)) + chunk.begin;
  const int n = int(chunk.end - chunk.begin), whole = fits_pack<kPack>(g) ? n / kPack * kPack : 0;
  bool finite = true;
#pragma unroll 1
  for (int i = int(threadIdx.x) * kPack; i < whole; i += kThreads * kPack)
    finite &= unscale<kPack>(g + i, Compute<S>(inverse));
#pragma unroll 1
  for (int i = whole + int(threadIdx.x); i < n; i += kThreads)
    finite &= unscale<1>(g + i, Compute<S>(inverse));
  return finite;
}

__global__ void __launch_bounds__(kThreads)
    unscale_kernel(const PlanTensor* tensors, const PlanChunk* chunks, const void* const* grads,
                   const __grid_constant__ Inline<const void*> own_grads, LossScale* scale, double* found) {
  const PlanChunk chunk = chunks[blockIdx.x];
  const void* const grad = (grads ? grads : own_grads.at)[chunk.tensor];
  if (!grad) return;
  const double inverse = 1.0 / scale->scale;
  bool finite = true;
  switch (tensors[chunk.tensor].dtype) {
    case DType::f32:
      finite = unscale_chunk<float>(grad, chunk, inverse);
      break;
    case DType::f64:
      finite = unscale_chunk<double>(grad, chunk, inverse);
      break;
    case DType::bf16:
      finite = unscale_chunk<Bf16>(grad, chunk, inverse);
      break;
    default:  // float16 would underflow
      break;
  }
  if (!finite) *found = scale->found_inf = 1.0;  // all that write it write the same
}

__global__ void update_scale_kernel(ScaleUpdate update, bool found_inf, LossScale* scale) {
  LossScale s = *scale;
  if (found_inf) s.found_inf = 1.0;
  *scale = updated(s, update);
}

}  // namespace
}  // namespace FASTOPT_ISA

void DevicePlan::judge_from_host(const void* const* grads, const Judge& judge,
                                 const Inline<double>& own_tables, CudaStream stream) {
  Inline<const void*> own_grads;
  grads = place_grads(grads, own_grads, stream);
  const NormChunks at{tensors_.get(), norm_chunks_.get(), partials_.get(), blocks_done_.get()};
  launch(judge_kernel, norm_chunks_size_, kThreads, 0, stream, at, grads, judge, own_grads, own_tables);
}

void DevicePlan::unscale_from_host(const void* const* grads, LossScale* scale, double* found,
                                   CudaStream stream) {
  if (chunks_size_ == 0) return;
  Inline<const void*> own;
  grads = place_grads(grads, own, stream);
  launch(unscale_kernel, chunks_size_, kThreads, 0, stream, tensors_.get(), chunks_.get(), grads, own, scale,
         found);
}

DeviceAttempts::DeviceAttempts(std::vector<DevicePlan*> plans, const std::vector<Index>& widths,
                               CudaStream stream)
    : plans_(std::move(plans)) {
  const Index n = Index(plans_.size()), bytes = Index(sizeof(Verdict) + sizeof(LossScale)) + n * 8;
  std::vector<CoefChoice> choices;
  std::vector<std::vector<const void*>> none;
  for (Index i = 0; i < n; ++i) {
    choices.push_back(plans_[i]->prepare_ahead(widths[i], stream));
    none.emplace_back(std::size_t(plans_[i]->size()), nullptr);
    if (plans_[i]->has_elements()) last_ = i;
  }
  state_ = device_memory(bytes);
  choices_.reset(static_cast<CoefChoice*>(device_memory((n + 1) * Index(sizeof(CoefChoice))).release()));
  clear_in_device(state_.get(), bytes, stream);
  copy_to_device(choices_.get(), choices.data(), n * Index(sizeof(CoefChoice)), stream);
  seen_.reserve(sizeof(unsigned long long));
  // An attempt without a gradient that chooses nothing: the kernels are loaded.
  const auto scale = reinterpret_cast<LossScale*>(norms() + n);
  judge(none, 0, {std::nullopt, scale}, stream);
  unscale(plans_, none, scale, norms(), stream);
  update_scale_on_device({2.0, 0.5, 1.0}, false, scale, stream);
  synchronize(stream);
}

void DeviceAttempts::advance(const std::vector<Ahead>& plans, Index counts, Index first, bool may_travel,
                             CudaStream stream) {
  Index size = 0;
  for (std::size_t i = 0; i < plans_.size(); ++i) size += plans_[i]->ahead_size(plans[i].n_rows, counts);
  travels_ = may_travel && size <= Inline<double>::kSize;
  double* own = travels_ ? own_tables_.at : nullptr;
  for (std::size_t i = 0; i < plans_.size(); ++i) {
    const Ahead& ahead = plans[i];
    plans_[i]->advance_ahead(ahead.coefs, ahead.n_rows, counts, first, ahead.rows, own, stream);
    if (own) own += plans_[i]->ahead_size(ahead.n_rows, counts);
  }
}

void DeviceAttempts::step(const std::vector<std::vector<const void*>>& grads, const Attempt& attempt,
                          CudaStream stream) {
  judge(grads, Index(plans_.size()), attempt, stream);
  travels_ = false;
  DeviceStep step = {};
  step.grad_scale = &verdict()->grad_scale;
  step.found_inf = &verdict()->found_inf;
  for (std::size_t i = 0; i < plans_.size(); ++i) {
    if (!attempt.scales.empty()) {
      step.grad_scale = attempt.scales[i].at;
      step.scale_each = attempt.scales[i].each;
    }
    plans_[i]->capture_step(grads[i].data(), step, stream);
  }
}

void DeviceAttempts::judge(const std::vector<std::vector<const void*>>& grads, Index n,
                           const Attempt& attempt, CudaStream stream) {
  const Judge judge{norms(),
                    n,
                    last_,
                    attempt.max_norm.has_value(),
                    attempt.max_norm.value_or(INFINITY),
                    attempt.scale,
                    attempt.norm_before,
                    attempt.norm,
                    attempt.taken,
                    attempt.found,
                    choices_.get(),
                    travels_ && !is_capturing(stream),
                    verdict(),
                    reinterpret_cast<unsigned long long*>(seen_.get())};
  // The largest magnitude shows whether all are finite where no norm is needed.
  const Monoid monoid = attempt.max_norm ? Monoid::sum_squares : Monoid::abs_max;
  const bool norms_count = attempt.max_norm || !attempt.found;
  for (Index i = 0; i < n; ++i)
    if (i != last_ && norms_count)
      plans_[i]->norm_from_host(monoid, {grads[i].data(), INFINITY, norms() + i}, stream);
  if (last_ >= 0 && norms_count)
    return plans_[last_]->judge_from_host(grads[last_].data(), judge, own_tables_, stream);
  launch(judge_kernel, 1, kThreads, 0, stream, NormChunks{}, static_cast<const void* const*>(nullptr), judge,
         Inline<const void*>(), own_tables_);
}

void DeviceAttempts::unscale(const std::vector<DevicePlan*>& plans,
                             const std::vector<std::vector<const void*>>& grads, LossScale* scale,
                             double* found, CudaStream stream) {
  clear_in_device(found, sizeof(double), stream);
  for (std::size_t i = 0; i < plans.size(); ++i)
    plans[i]->unscale_from_host(grads[i].data(), scale, found, stream);
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
