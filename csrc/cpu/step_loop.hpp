// The loop of a step: what all optimizers share around their rule's direction.
#pragma once

#include "core/packing.hpp"
#include "cpu/loops.hpp"
#include "formulas/common.hpp"
#include "formulas/packed.hpp"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// How the loop reads and writes one of its arrays: as it is computed,
template <class S>
struct Plain {
  using T = decltype(load(S()));
  S* at;
  T read(Index i) const { return load(at[i]); }
  void write(Index i, T x) const { at[i] = Store<S>::from(x); }
};
// or as bfloat16 that is rounded by chance.
struct Halved {
  Bf16* at;
  const std::uint16_t* noise;
  std::uint32_t low;
  float read(Index i) const { return load(at[i]); }
  void write(Index i, float x) const { at[i] = round_by_chance(x, noise[i] + low); }
};
inline Halved halved(void* at, const Noise& noise) {
  return {static_cast<Bf16*>(at), noise.halves, noise.low >> kHalfNoiseShift};
}

// Beyond the rule's states s0 to s3 are not read; ema only with an average. A state may count what is
// written.
template <bool WithEma, bool Bounded, class Rule, class T, class P, class S0, class S1, class S2, class S3,
          class Ema>
inline void update(const Common<T>& common, const Rule& rule, Plain<P> p, Plain<const P> g, S0& to0, S1& to1,
                   S2& to2, S3& to3, Plain<Ema> ema, Index n) {
  constexpr int kStates = Rule::states.size;
  static_assert(kStates <= 4);
  S0 s0 = to0;  // in registers
  S1 s1 = to1;
  S2 s2 = to2;
  S3 s3 = to3;
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) {
    T state[4];
    if constexpr (kStates > 0) state[0] = s0.read(i);
    if constexpr (kStates > 1) state[1] = s1.read(i);
    if constexpr (kStates > 2) state[2] = s2.read(i);
    if constexpr (kStates > 3) state[3] = s3.read(i);
    const T old = p.read(i);
    const T u = rule(common.template gradient<Bounded>(g.read(i), old), old, state);
    const T updated = common.parameter(old, u);
    p.write(i, updated);
    if constexpr (kStates > 0) s0.write(i, state[0]);
    if constexpr (kStates > 1) s1.write(i, state[1]);
    if constexpr (kStates > 2) s2.write(i, state[2]);
    if constexpr (kStates > 3) s3.write(i, state[3]);
    if constexpr (WithEma) ema.write(i, common.average(ema.read(i), updated));
  }
  to0 = s0;
  to1 = s1;
  to2 = s2;
  to3 = s3;
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
