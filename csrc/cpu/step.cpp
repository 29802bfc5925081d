// The step driver: what all optimizers share around their rule's direction.
#include "core/dispatch.hpp"
#include "cpu/storage.hpp"
#include "cpu/table.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <class T>
struct Common {
  T grad_scale, clip_value, l1, l2, lr, decay, ema_rest;
  explicit Common(const double* c)
      : grad_scale(T(c[0])),
        clip_value(T(c[1])),
        l1(T(c[2])),
        l2(T(c[3])),
        lr(T(c[4])),
        decay(T(c[5])),
        ema_rest(T(1.0 - c[6])) {}

  // Clipping and the L1 penalty cost a quarter of an SGD step in cache, so those without go without.
  template <bool Bounded>
  FO_HD T gradient(T g, T p) const {
    g *= grad_scale;
    if constexpr (Bounded) g = select(g > clip_value, clip_value, select(g < -clip_value, -clip_value, g));
    g = fma(l2, p, g);
    if constexpr (Bounded) g = fma(l1, sign(p), g);
    return g;
  }
  FO_HD T parameter(T p, T u) const { return fma(-lr, u, p * decay); }
  FO_HD T average(T ema, T p) const { return fma(ema_rest, p - ema, ema); }
};

// P: storage of parameters and gradients. S: storage of the rule's state and of averages.
template <template <class> class Rule, class P, class S, bool WithEma, bool Bounded>
void step_chunk(const StepChunk& chunk, const double* coefs) {
  using T = Compute<P>;
  constexpr int kStates = Rule<T>::states.size;
  static_assert(kStates <= 3);
  const Common<T> common(coefs);
  const Rule<T> rule(coefs + kCommonCoefs);
  P* p = static_cast<P*>(chunk.p);
  const P* g = static_cast<const P*>(chunk.g);
  S* s0 = static_cast<S*>(chunk.states[0]);
  S* s1 = static_cast<S*>(chunk.states[1]);
  S* s2 = static_cast<S*>(chunk.states[2]);
  S* ema = static_cast<S*>(chunk.ema);
  const Index n = chunk.n;
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) {
    T state[3];
    if constexpr (kStates > 0) state[0] = load(s0[i]);
    if constexpr (kStates > 1) state[1] = load(s1[i]);
    if constexpr (kStates > 2) state[2] = load(s2[i]);
    const T old = load(p[i]);
    const T u = rule(common.template gradient<Bounded>(load(g[i]), old), old, state);
    const T updated = common.parameter(old, u);
    p[i] = Store<P>::from(updated);
    if constexpr (kStates > 0) s0[i] = Store<S>::from(state[0]);
    if constexpr (kStates > 1) s1[i] = Store<S>::from(state[1]);
    if constexpr (kStates > 2) s2[i] = Store<S>::from(state[2]);
    if constexpr (WithEma) ema[i] = Store<S>::from(common.average(load(ema[i]), updated));
  }
}

template <template <class> class Rule, class P, class S>
constexpr StorageKernels storage_kernels() {
  return {{{step_chunk<Rule, P, S, false, false>, step_chunk<Rule, P, S, false, true>},
           {step_chunk<Rule, P, S, true, false>, step_chunk<Rule, P, S, true, true>}}};
}

// Low-precision parameters keep state and averages in float32: bfloat16 ones stop moving at a decay of 0.999.
template <template <class> class Rule>
constexpr StepKernels step_kernels() {
  return {{storage_kernels<Rule, float, float>(), storage_kernels<Rule, double, double>(),
           storage_kernels<Rule, Bf16, float>(), storage_kernels<Rule, F16, float>()}};
}

template <class List>
struct Table;
template <template <class> class... Rule>
struct Table<Formulas<Rule...>> {
  static constexpr StepKernels rows[] = {step_kernels<Rule>()...};
};

}  // namespace

const StepKernels* step_table() { return Table<Rules>::rows; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
