// The step driver.
#include "core/dispatch.hpp"
#include "cpu/step_loop.hpp"
#include "cpu/table.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// P: storage of parameters and gradients. S: storage of the rule's state and of averages.
template <template <class> class Rule, class P, class S, bool WithEma, bool Bounded>
void step_chunk(const StepChunk& chunk, const double* coefs) {
  using T = Compute<P>;
  const auto state = [&](int s) { return Plain<S>{static_cast<S*>(chunk.states[s])}; };
  Plain<S> s0 = state(0), s1 = state(1), s2 = state(2), s3 = state(3);
  update<WithEma, Bounded>(Common<T>(coefs), Rule<T>(coefs + kCommonCoefs),
                           Plain<P>{static_cast<P*>(chunk.p)}, Plain<const P>{static_cast<const P*>(chunk.g)},
                           s0, s1, s2, s3, Plain<S>{static_cast<S*>(chunk.ema)}, chunk.n);
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
