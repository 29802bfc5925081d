// The step driver: what all optimizers share around their rule's direction.
#include "core/dispatch.hpp"
#include "cpu/loops.hpp"
#include "cpu/table.hpp"
#include "formulas/common.hpp"
#include "formulas/registry.hpp"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// P: storage of parameters and gradients. S: storage of the rule's state and of averages.
template <template <class> class Rule, class P, class S, bool WithEma, bool Bounded>
void step_chunk(const StepChunk& chunk, const double* coefs) {
  using T = Compute<P>;
  constexpr int kStates = Rule<T>::states.size;
  static_assert(kStates <= 4);
  const Common<T> common(coefs);
  const Rule<T> rule(coefs + kCommonCoefs);
  P* p = static_cast<P*>(chunk.p);
  const P* g = static_cast<const P*>(chunk.g);
  S* s0 = static_cast<S*>(chunk.states[0]);
  S* s1 = static_cast<S*>(chunk.states[1]);
  S* s2 = static_cast<S*>(chunk.states[2]);
  S* s3 = static_cast<S*>(chunk.states[3]);
  S* ema = static_cast<S*>(chunk.ema);
  const Index n = chunk.n;
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) {
    T state[4];
    if constexpr (kStates > 0) state[0] = load(s0[i]);
    if constexpr (kStates > 1) state[1] = load(s1[i]);
    if constexpr (kStates > 2) state[2] = load(s2[i]);
    if constexpr (kStates > 3) state[3] = load(s3[i]);
    const T old = load(p[i]);
    const T u = rule(common.template gradient<Bounded>(load(g[i]), old), old, state);
    const T updated = common.parameter(old, u);
    p[i] = Store<P>::from(updated);
    if constexpr (kStates > 0) s0[i] = Store<S>::from(state[0]);
    if constexpr (kStates > 1) s1[i] = Store<S>::from(state[1]);
    if constexpr (kStates > 2) s2[i] = Store<S>::from(state[2]);
    if constexpr (kStates > 3) s3[i] = Store<S>::from(state[3]);
    if constexpr (WithEma) ema[i] = Store<S>::from(common.average(load(ema[i]), updated));
  }
}

template <template <class> class Rule, class P, class S>
constexpr StorageKernels storage_kernels() {
  return {{{step_chunk<Rule, P, S, false, false>, step_chunk<Rule, P, S, false, true>},
           {step_chunk<Rule, P, S, true, false>, step_chunk<Rule, P, S, true, true>}}};
}

template <template <class> class Rule>
constexpr StepKernels step_kernels() {
  return {{storage_kernels<Rule, float, float>(), storage_kernels<Rule, double, double>()}};
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
