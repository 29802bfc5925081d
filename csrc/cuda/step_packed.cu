// The step of tensors that are stored in fewer bytes than they are computed with: a warp takes a group of
// elements that share an exponent, each of its threads four in a row. The bits are the CPU's.
#include "cuda/step.cuh"
#include "formulas/packed.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

constexpr int kWarp = 32, kEach = kGroup / kWarp;

// A thread's elements of one array: kEach in a row, or the n that there are.
template <class P>
__device__ __forceinline__ void take(const void* base, Index first, int n, P (&to)[kEach]) {
  const P* const from = static_cast<const P*>(base) + first;
  if (n == kEach && fits_pack<kEach>(from)) {
    const Pack<P, kEach> pack = load_pack<kEach>(from);
#pragma unroll
    for (int k = 0; k < kEach; ++k) to[k] = pack.at[k];
  } else {
#pragma unroll
    for (int k = 0; k < kEach; ++k) to[k] = k < n ? from[k] : P{};
  }
}

template <class P>
__device__ __forceinline__ void put(const P (&from)[kEach], void* base, Index first, int n) {
  P* const to = static_cast<P*>(base) + first;
  if (n == kEach && fits_pack<kEach>(to)) {
    Pack<P, kEach> pack;
#pragma unroll
    for (int k = 0; k < kEach; ++k) pack.at[k] = from[k];
    store_pack(to, pack);
  } else {
#pragma unroll
    for (int k = 0; k < kEach; ++k)
      if (k < n) to[k] = from[k];
  }
}

template <class P>
__device__ __forceinline__ void take_floats(const void* base, Index first, int n, float (&to)[kEach]) {
  P stored[kEach];
  take(base, first, n, stored);
#pragma unroll
  for (int k = 0; k < kEach; ++k) to[k] = load(stored[k]);
}

template <class P>
__device__ __forceinline__ void put_floats(const float (&from)[kEach], void* base, Index first, int n) {
  P stored[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) stored[k] = Store<P>::from(from[k]);
  put(stored, base, first, n);
}

// Parameters or gradients, of any type that computes in float.
__device__ __forceinline__ void take_any(DType dtype, const void* base, Index first, int n,
                                         float (&to)[kEach]) {
  if (dtype == DType::f32) take_floats<float>(base, first, n, to);
  if (dtype == DType::bf16) take_floats<Bf16>(base, first, n, to);
  if (dtype == DType::f16) take_floats<F16>(base, first, n, to);
}
__device__ __forceinline__ void put_any(DType dtype, const float (&from)[kEach], void* base, Index first,
                                        int n) {
  if (dtype == DType::f32) put_floats<float>(from, base, first, n);
  if (dtype == DType::bf16) put_floats<Bf16>(from, base, first, n);
  if (dtype == DType::f16) put_floats<F16>(from, base, first, n);
}

template <bool Signed>
__device__ __forceinline__ void decode(const void* codes, std::uint8_t exponent, Index first, int n,
                                       float (&to)[kEach]) {
  const std::uint16_t base = ByteCode<Signed>::base(exponent);
  std::uint8_t code[kEach];
  take(codes, first, n, code);
#pragma unroll
  for (int k = 0; k < kEach; ++k) to[k] = ByteCode<Signed>::value(code[k], base);
}

// Returns the exponent of the group that the warp encodes together.
template <bool Signed>
__device__ __forceinline__ std::uint8_t encode(const float (&from)[kEach],
                                               const std::uint32_t (&noise)[kEach], void* codes, Index first,
                                               int n) {
  using Code = ByteCode<Signed>;
  std::uint16_t words[kEach];
  unsigned largest = 0;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    words[k] = k < n ? Code::word(from[k], noise[k]) : std::uint16_t(0);
    const unsigned m = Code::magnitude(words[k]);
    largest = m > largest ? m : largest;
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const unsigned other = __shfl_xor_sync(~0u, largest, distance);
    largest = other > largest ? other : largest;
  }
  const std::uint8_t exponent = Code::exponent(std::uint16_t(largest));
  const std::uint16_t base = Code::base(exponent);
  std::uint8_t code[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) code[k] = std::uint8_t(Code::code(words[k], base));
  put(code, codes, first, n);
  return exponent;
}

// One tensor under one rule; the update of a thread's elements.
template <template <class> class Rule>
struct PackedUpdate {
  static constexpr int kStates = Rule<float>::states.size;

  const PlanTensor& tensor;
  std::uint64_t index;  // of the tensor
  const void* grad;
  const std::uint32_t* noise;
  std::uint64_t step;
  Common<float> common;
  Rule<float> rule;
  bool bounded;

  __device__ PackedUpdate(const StepPiece& piece, const std::uint32_t* noise_)
      : tensor(*piece.tensor),
        index(std::uint64_t(piece.chunk.tensor)),
        grad(piece.grad),
        noise(noise_),
        step(std::uint64_t(piece.coefs[kStep])),
        common(piece.coefs, piece.scale, piece.factors),
        rule(piece.coefs + kCommonCoefs),
        bounded(is_bounded(piece.coefs)) {}

  __device__ __forceinline__ void noise_of(int slot, Index first, std::uint32_t (&to)[kEach]) const {
    const std::uint64_t block = std::uint64_t(first) / kNoiseBlock;
    const NoiseStart start = noise_start(step, index * kNoiseSlots + std::uint64_t(slot), block);
    const std::uint32_t* const words = noise + start.place + first % kNoiseBlock;
#pragma unroll
    for (int k = 0; k < kEach; ++k) to[k] = words[k] + start.low;
  }

  __device__ __forceinline__ void take_state(int s, Index first, int n, float (&to)[kEach]) const {
    const void* const from = tensor.states[s];
    switch (tensor.packing.states[s]) {
      case Stored::as_computed:
        return take_floats<float>(from, first, n, to);
      case Stored::bf16:
        return take_floats<Bf16>(from, first, n, to);
      case Stored::signed_byte:
        return decode<true>(from, tensor.packing.exponents[s][first / kGroup], first, n, to);
      case Stored::unsigned_byte:
        return decode<false>(from, tensor.packing.exponents[s][first / kGroup], first, n, to);
    }
  }

  __device__ __forceinline__ void put_state(int s, const float (&from)[kEach], Index first, int n) const {
    const Stored stored = tensor.packing.states[s];
    void* const to = tensor.states[s];
    if (stored == Stored::as_computed) return put_floats<float>(from, to, first, n);
    std::uint32_t chances[kEach];
    noise_of(s, first, chances);
    if (stored == Stored::bf16) return put_by_chance(from, chances, to, first, n);
    const std::uint8_t exponent = stored == Stored::signed_byte ? encode<true>(from, chances, to, first, n)
                                                                : encode<false>(from, chances, to, first, n);
    if (threadIdx.x % kWarp == 0) tensor.packing.exponents[s][first / kGroup] = exponent;
  }

  __device__ static void put_by_chance(const float (&from)[kEach], const std::uint32_t (&chances)[kEach],
                                       void* to, Index first, int n) {
    Bf16 rounded[kEach];
#pragma unroll
    for (int k = 0; k < kEach; ++k) rounded[k] = round_by_chance(from[k], chances[k] >> kHalfNoiseShift);
    put(rounded, to, first, n);
  }

  __device__ __forceinline__ void take_parameter(Index first, int n, float (&to)[kEach]) const {
    if (!tensor.packing.remainder) return take_any(tensor.dtype, tensor.p, first, n, to);
    Bf16 high[kEach];
    std::int16_t low[kEach];
    take(tensor.p, first, n, high);
    take(tensor.packing.remainder, first, n, low);
#pragma unroll
    for (int k = 0; k < kEach; ++k) to[k] = join(high[k], low[k]);
  }

  __device__ __forceinline__ void put_parameter(const float (&from)[kEach], Index first, int n) const {
    if (tensor.packing.remainder) {
      Bf16 high[kEach];
      std::int16_t low[kEach];
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        high[k] = high_part(from[k]);
        low[k] = low_part(from[k]);
      }
      put(high, tensor.p, first, n);
      put(low, tensor.packing.remainder, first, n);
    } else if (tensor.packing.by_chance) {
      std::uint32_t chances[kEach];
      noise_of(kParameterSlot, first, chances);
      put_by_chance(from, chances, tensor.p, first, n);
    } else {
      put_any(tensor.dtype, from, tensor.p, first, n);
    }
    if (tensor.packing.shadow) put_any(tensor.packing.shadow_dtype, from, tensor.packing.shadow, first, n);
  }

  // Elements [first, first + n); all threads of a warp come with those of one group, some with none.
  __device__ __forceinline__ void run(Index first, int n) const {
    float p[kEach], g[kEach], ema[kEach] = {}, states[kStates > 0 ? kStates : 1][kEach];
    take_parameter(first, n, p);
    take_any(tensor.dtype, grad, first, n, g);
#pragma unroll
    for (int s = 0; s < kStates; ++s) take_state(s, first, n, states[s]);
    if (tensor.ema) take_floats<float>(tensor.ema, first, n, ema);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      float state[kStates > 0 ? kStates : 1];
#pragma unroll
      for (int s = 0; s < kStates; ++s) state[s] = states[s][k];
      const float direction =
          bounded ? common.template gradient<true>(g[k], p[k]) : common.template gradient<false>(g[k], p[k]);
      p[k] = common.parameter(p[k], rule(direction, p[k], state));
#pragma unroll
      for (int s = 0; s < kStates; ++s) states[s][k] = state[s];
      ema[k] = common.average(ema[k], p[k]);
    }
    put_parameter(p, first, n);
#pragma unroll
    for (int s = 0; s < kStates; ++s) put_state(s, states[s], first, n);
    if (tensor.ema) put_floats<float>(ema, tensor.ema, first, n);
  }
};

// Tensors that compute in double are another kernel's.
template <template <class> class Rule>
__global__ void __launch_bounds__(kThreads, 2)
    packed_step_kernel(const PlanTensor* tensors, const PlanChunk* chunks, DeviceStep step,
                       const std::uint32_t* noise, const __grid_constant__ Inline<double> own_coefs,
                       const __grid_constant__ Inline<const void*> own_grads) {
  StepPiece piece;
  if (!find_piece(tensors, chunks, step, own_coefs.at, own_grads.at, piece) ||
      piece.tensor->dtype == DType::f64)
    return;
  const PackedUpdate<Rule> update(piece, noise);
  const int lane = int(threadIdx.x) % kWarp;
  for (Index group = piece.chunk.begin + Index(threadIdx.x) / kWarp * kGroup; group < piece.chunk.end;
       group += kThreads / kWarp * kGroup) {
    const Index first = group + lane * kEach, left = piece.chunk.end - first;
    update.run(first, int(left < 0 ? 0 : left > kEach ? kEach : left));
  }
}

using PackedStepKernel = void (*)(const PlanTensor* tensors, const PlanChunk* chunks, DeviceStep step,
                                  const std::uint32_t* noise, Inline<double> own_coefs,
                                  Inline<const void*> own_grads);

template <class List>
struct Table;
template <template <class> class... Rule>
struct Table<Formulas<Rule...>> {
  static constexpr PackedStepKernel kernels[] = {packed_step_kernel<Rule>...};
};

}  // namespace

void launch_packed_step(int rule, Index chunks_size, const PlanTensor* tensors, const PlanChunk* chunks,
                        const DeviceStep& step, const std::uint32_t* noise, const Inline<double>& coefs,
                        const Inline<const void*>& grads, CudaStream stream) {
  launch(Table<Rules>::kernels[rule], chunks_size, kThreads, 0, stream, tensors, chunks, step, noise, coefs,
         grads);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
