// The step of float32 parameters whose averages are bfloat16 or bytes. Rules without such states have none.
#include "core/dispatch.hpp"
#include "cpu/bytes.hpp"
#include "cpu/step_loop.hpp"
#include "cpu/table.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <template <class> class Rule, int S>
constexpr Packable kind() {
  return S < Rule<float>::states.size ? packable(Rule<float>::states, S) : Packable::no;
}

constexpr Index kAhead = 4 * kGroup;  // the arithmetic of a group is longer than what a core looks ahead

void prefetch(const StepChunk& chunk, Index first) {
  for (Index i = first; i < first + kGroup; i += 64 / Index(sizeof(float))) {
    __builtin_prefetch(static_cast<const float*>(chunk.p) + i, 1);
    __builtin_prefetch(static_cast<const float*>(chunk.g) + i);
  }
}

Plain<float> plain_state(const StepChunk& chunk, int s, Index first) {
  float* const state = static_cast<float*>(chunk.states[s]);
  return {state ? state + first : nullptr};
}

template <template <class> class Rule>
struct HalvedStates {
  template <int S>
  static auto state(const PackedChunk& packed, Index first) {
    if constexpr (kind<Rule, S>() == Packable::no) {
      return plain_state(packed.chunk, S, first);
    } else {
      return halved(static_cast<Bf16*>(packed.chunk.states[S]) + first, packed.noise[S].from(first));
    }
  }

  static void step(const PackedChunk& given, const double* coefs) {
    const PackedChunk packed = given;  // in registers
    const Common<float> common(coefs);
    const Rule<float> rule(coefs + kCommonCoefs);
    const Index n = packed.chunk.n;
    for (Index first = 0; first < n; first += kGroup) {
      prefetch(packed.chunk, first + kAhead);
      const Index some = n - first < kGroup ? n - first : kGroup;
      auto s0 = state<0>(packed, first);
      auto s1 = state<1>(packed, first);
      auto s2 = state<2>(packed, first);
      auto s3 = state<3>(packed, first);
      update<false, false>(common, rule, Plain<float>{static_cast<float*>(packed.chunk.p) + first},
                           Plain<const float>{static_cast<const float*>(packed.chunk.g) + first}, s0, s1, s2,
                           s3, Plain<float>{}, some);
    }
  }
};

// Room for a group's floats and words, which is little enough to stay in the first-level cache.
template <template <class> class Rule>
struct ByteStates {
  float decoded[4][kGroup];
  std::uint16_t words[4][kGroup];

  template <int S>
  auto take(const PackedChunk& packed, Index first, int n) {
    if constexpr (kind<Rule, S>() == Packable::no) {
      return plain_state(packed.chunk, S, first);
    } else {
      constexpr bool kSigned = kind<Rule, S>() == Packable::with_sign;
      const std::uint8_t* const codes = static_cast<const std::uint8_t*>(packed.chunk.states[S]) + first;
      decode_group<kSigned>(codes, packed.exponents[S][first / kGroup], decoded[S], n);
      return Worded<kSigned>{decoded[S], words[S], packed.noise[S].words + first, packed.noise[S].low};
    }
  }

  template <int S, class State>
  void put(const State& state, const PackedChunk& packed, Index first, int n) const {
    if constexpr (kind<Rule, S>() != Packable::no)
      packed.exponents[S][first / kGroup] =
          state.finish(static_cast<std::uint8_t*>(packed.chunk.states[S]) + first, n);
  }

  void group(const PackedChunk& packed, const Common<float>& common, const Rule<float>& rule, Index first,
             int n) {
    auto s0 = take<0>(packed, first, n);
    auto s1 = take<1>(packed, first, n);
    auto s2 = take<2>(packed, first, n);
    auto s3 = take<3>(packed, first, n);
    update<false, false>(common, rule, Plain<float>{static_cast<float*>(packed.chunk.p) + first},
                         Plain<const float>{static_cast<const float*>(packed.chunk.g) + first}, s0, s1, s2,
                         s3, Plain<float>{}, n);
    put<0>(s0, packed, first, n);
    put<1>(s1, packed, first, n);
    put<2>(s2, packed, first, n);
    put<3>(s3, packed, first, n);
  }

  static void step(const PackedChunk& given, const double* coefs) {
    const PackedChunk packed = given;  // bytes that are written could be part of what was given
    const Common<float> common(coefs);
    const Rule<float> rule(coefs + kCommonCoefs);
    alignas(64) ByteStates states;
    const Index n = packed.chunk.n;
    Index first = 0;
    for (; first + kGroup <= n; first += kGroup) {
      prefetch(packed.chunk, first + kAhead);
      states.group(packed, common, rule, first, kGroup);
    }
    if (first < n) states.group(packed, common, rule, first, int(n - first));
  }
};

template <template <class> class Rule, int S>
constexpr Stored as_byte() {
  constexpr Packable k = kind<Rule, S>();
  return k == Packable::no          ? Stored::as_computed
         : k == Packable::with_sign ? Stored::signed_byte
                                    : Stored::unsigned_byte;
}
template <template <class> class Rule, int S>
constexpr Stored as_half() {
  return kind<Rule, S>() == Packable::no ? Stored::as_computed : Stored::bf16;
}

template <template <class> class Rule>
constexpr PackedStepKernels kernels_of() {
  constexpr bool any = kind<Rule, 0>() != Packable::no || kind<Rule, 1>() != Packable::no ||
                       kind<Rule, 2>() != Packable::no || kind<Rule, 3>() != Packable::no;
  if constexpr (any) {
    return {{{{as_half<Rule, 0>(), as_half<Rule, 1>(), as_half<Rule, 2>(), as_half<Rule, 3>()},
              HalvedStates<Rule>::step},
             {{as_byte<Rule, 0>(), as_byte<Rule, 1>(), as_byte<Rule, 2>(), as_byte<Rule, 3>()},
              ByteStates<Rule>::step}}};
  } else {
    return {};
  }
}

template <class List>
struct Table;
template <template <class> class... Rule>
struct Table<Formulas<Rule...>> {
  static constexpr PackedStepKernels rows[] = {kernels_of<Rule>()...};
};

}  // namespace

const PackedStepKernels* packed_step_table() { return Table<Rules>::rows; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
