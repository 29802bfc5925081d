// The step driver: one launch updates all tensors of a plan, a block for each chunk.
#include <algorithm>

#include "core/parallel.hpp"
#include "cuda/args.cuh"
#include "cuda/step.cuh"
#include "cuda/store.cuh"
#include "formulas/packed.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// Whatever the size of the plan, so many chunks for each multiprocessor, within bounds. The cut changes no
// bit.
constexpr Index kChunksEach = 16, kSmallestChunk = 2048, kLargestChunk = 16384;

// The arrays of one chunk under one rule, and the update of N elements at a time.
template <template <class> class Rule, class P>
struct Update {
  using T = Compute<P>;
  using S = T;  // of state and averages: low-precision parameters keep them in float32
  static constexpr int kStates = Rule<T>::states.size;
  static constexpr int kPack = kWidest / int(sizeof(S));

  Common<T> common;
  Rule<T> rule;
  bool bounded;
  P* p;
  const P* g;
  S* states[kStates > 0 ? kStates : 1];
  S* ema;

  __device__ explicit Update(const StepPiece& piece)
      : common(piece.coefs, piece.scale, piece.factors),
        rule(piece.coefs + kCommonCoefs),
        bounded(is_bounded(piece.coefs)),
        p(static_cast<P*>(piece.tensor->p) + piece.chunk.begin),
        g(static_cast<const P*>(piece.grad) + piece.chunk.begin),
        ema(piece.tensor->ema ? static_cast<S*>(piece.tensor->ema) + piece.chunk.begin : nullptr) {
    for (int s = 0; s < kStates; ++s)
      states[s] = static_cast<S*>(piece.tensor->states[s]) + piece.chunk.begin;
  }

  __device__ bool fits() const {
    bool fit = fits_pack<kPack>(p) && fits_pack<kPack>(g) && fits_pack<kPack>(ema);
    for (int s = 0; s < kStates; ++s) fit = fit && fits_pack<kPack>(states[s]);
    return fit;
  }

  template <int N>
  __device__ __forceinline__ void run(int i) const {
    Pack<P, N> p_pack = load_pack<N>(p + i);
    const Pack<P, N> g_pack = load_pack<N>(g + i);
    Pack<S, N> state_packs[kStates > 0 ? kStates : 1], ema_pack = {};
#pragma unroll
    for (int s = 0; s < kStates; ++s) state_packs[s] = load_pack<N>(states[s] + i);
    if (ema) ema_pack = load_pack<N>(ema + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      T state[kStates > 0 ? kStates : 1];
#pragma unroll
      for (int s = 0; s < kStates; ++s) state[s] = state_packs[s].at[k];
      const T old = load(p_pack.at[k]), raw = load(g_pack.at[k]);
      const T grad =
          bounded ? common.template gradient<true>(raw, old) : common.template gradient<false>(raw, old);
      const T updated = common.parameter(old, rule(grad, old, state));
      p_pack.at[k] = Store<P>::from(updated);
#pragma unroll
      for (int s = 0; s < kStates; ++s) state_packs[s].at[k] = state[s];
      ema_pack.at[k] = common.average(ema_pack.at[k], updated);
    }
    store_pack(p + i, p_pack);
#pragma unroll
    for (int s = 0; s < kStates; ++s) store_pack(states[s] + i, state_packs[s]);
    if (ema) store_pack(ema + i, ema_pack);
  }
};

template <template <class> class Rule, class P>
__device__ void update_chunk(const StepPiece& piece) {
  using Updates = Update<Rule, P>;
  const Updates update(piece);
  for_each_pack<Updates::kPack>(update.fits(), 0, int(piece.chunk.end - piece.chunk.begin), int(threadIdx.x),
                                kThreads, update);
}

// Blocks of one multiprocessor that share its registers: as many as leave no kernel short of them.
template <template <class> class Rule, bool Wide>
constexpr int kBlocks =
    Wide || Rule<float>::states.size >= 3 || Rule<float>::coefs.size == Names::kMax ? 2 : 3;

// Narrow and Wide: the plan has tensors that compute in float, in double. The registers of double would
// cost float its occupancy, so only a plan with both pays for both.
template <template <class> class Rule, bool Narrow, bool Wide>
__global__ void __launch_bounds__(kThreads, (kBlocks<Rule, Wide>))
    step_kernel(const PlanTensor* tensors, const PlanChunk* chunks, DeviceStep step,
                const __grid_constant__ Inline<double> own_coefs,
                const __grid_constant__ Inline<const void*> own_grads) {
  StepPiece piece;
  if (!find_piece(tensors, chunks, step, own_coefs.at, own_grads.at, piece)) return;
  const DType dtype = piece.tensor->dtype;
  if constexpr (Wide) {
    if (dtype == DType::f64) update_chunk<Rule, double>(piece);
  }
  if constexpr (Narrow) {
    if (dtype == DType::f32) update_chunk<Rule, float>(piece);
    if (dtype == DType::bf16) update_chunk<Rule, Bf16>(piece);
    if (dtype == DType::f16) update_chunk<Rule, F16>(piece);
  }
}

using DeviceStepKernel = void (*)(const PlanTensor* tensors, const PlanChunk* chunks, DeviceStep step,
                                  Inline<double> own_coefs, Inline<const void*> own_grads);

template <class List>
struct Table;
template <template <class> class... Rule>
struct Table<Formulas<Rule...>> {
  static constexpr DeviceStepKernel narrow[] = {step_kernel<Rule, true, false>...},
                                    wide[] = {step_kernel<Rule, false, true>...},
                                    both[] = {step_kernel<Rule, true, true>...};
};

Index chunk_size(Index elements) {
  int device, multiprocessors;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const Index size = elements / (multiprocessors * kChunksEach) / kSmallestChunk * kSmallestChunk;
  return size < kSmallestChunk ? kSmallestChunk : size > kLargestChunk ? kLargestChunk : size;
}

// A copy in device memory of its own.
template <class T>
DeviceArray<T> upload(const std::vector<T>& from) {
  const std::size_t bytes = from.size() * sizeof(T);
  DeviceArray<T> copy(static_cast<T*>(device_memory(Index(bytes)).release()));
  check(cudaMemcpy(copy.get(), from.data(), bytes, cudaMemcpyHostToDevice));
  return copy;
}

}  // namespace
}  // namespace FASTOPT_ISA

DevicePlan::DevicePlan(int rule, const std::vector<PlanTensor>& tensors)
    : rule_(rule), size_(Index(tensors.size())) {
  Index elements = 0;
  for (const PlanTensor& tensor : tensors) {
    elements += tensor.n;
    linear_.push_back(rule == index_in<Sgd>(Rules{}) && !tensor.ema && !tensor.packing.any() &&
                      (tensor.dtype == DType::f32 || tensor.dtype == DType::f64));
    (tensor.dtype == DType::f64 ? wide_ : narrow_) = true;
    packed_ = packed_ || tensor.packing.any();
  }
  const std::vector<PlanChunk> chunks = cut(tensors, chunk_size(elements));
  const std::vector<PlanChunk> norm_chunks = cut(tensors, kChunk);
  chunks_size_ = Index(chunks.size());
  norm_chunks_size_ = Index(norm_chunks.size());
  blocks_done_ = upload(std::vector<unsigned>(std::max<std::size_t>(tensors.size(), 1)));
  if (chunks.empty()) return;
  tensors_ = upload(tensors);
  chunks_ = upload(chunks);
  norm_chunks_ = upload(norm_chunks);
  if (packed_) {
    std::vector<std::uint32_t> noise(kNoiseTable);
    for (std::size_t j = 0; j < noise.size(); ++j) noise[j] = noise_word(std::uint32_t(j));
    noise_ = upload(noise);
  }
  partials_ = upload(std::vector<double>(2 * norm_chunks.size()));
}

void DevicePlan::step(const DeviceStep& step, CudaStream stream) const {
  launch_step(step, Inline<double>(), Inline<const void*>(), stream);
}

void DevicePlan::step_from_host(DeviceStep step, Index n_coefs, CudaStream stream) {
  Inline<double> coefs;
  Inline<const void*> grads;
  place(step, n_coefs, coefs, grads, stream);
  launch_step(step, coefs, grads, stream);
}

void DevicePlan::place(DeviceStep& step, Index n_coefs, Inline<double>& coefs, Inline<const void*>& grads,
                       CudaStream stream) {
  if (n_coefs <= Inline<double>::kSize) {
    std::copy_n(step.coefs, n_coefs, coefs.at);
    step.coefs = nullptr;
  } else {
    if (coefs_room_ < n_coefs) coefs_.reset();
    coefs_room_ = std::max(coefs_room_, n_coefs);
    store(room(coefs_, coefs_room_), step.coefs, n_coefs, stream);
    step.coefs = coefs_.get();
  }
  if (step.rows) {
    if (known_rows_.empty() || !std::equal(known_rows_.begin(), known_rows_.end(), step.rows)) {
      store(room(rows_, size_), step.rows, size_, stream);
      known_rows_.assign(step.rows, step.rows + size_);
    }
    step.rows = rows_.get();
  }
  step.grads = place_grads(step.grads, grads, stream);
}

void DevicePlan::launch_step(const DeviceStep& step, const Inline<double>& coefs,
                             const Inline<const void*>& grads, CudaStream stream) const {
  if (chunks_size_ == 0) return;
  using Kernels = Table<Rules>;
  if (packed_) {
    launch_packed_step(rule_, chunks_size_, tensors_.get(), chunks_.get(), step, noise_.get(), coefs, grads,
                       stream);
    if (!wide_) return;
  }
  const DeviceStepKernel* kernels = packed_ ? Kernels::wide
                                    : wide_ ? (narrow_ ? Kernels::both : Kernels::wide)
                                            : Kernels::narrow;
  launch(kernels[rule_], chunks_size_, kThreads, 0, stream, tensors_.get(), chunks_.get(), step, coefs,
         grads);
}

const void* const* DevicePlan::place_grads(const void* const* grads, Inline<const void*>& own,
                                           CudaStream stream) {
  if (size_ <= Inline<const void*>::kSize) {
    std::copy_n(grads, size_, own.at);
    return nullptr;
  }
  if (is_capturing(stream)) return place_captured_grads(grads, stream);
  if (known_grads_.empty() || !std::equal(known_grads_.begin(), known_grads_.end(), grads)) {
    store(room(grads_, size_), grads, size_, stream);
    known_grads_.assign(grads, grads + size_);
  }
  return grads_.get();
}

}  // namespace fastopt
