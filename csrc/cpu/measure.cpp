// The first pass of steps that depend on whole tensors: squares of the direction and of the parameter,
// summed. The direction is the rule's where steps are scaled by its norm, of other rules the gradient with
// what all optimizers do to it.
#include "cpu/lanes.hpp"
#include "cpu/table.hpp"
#include "formulas/common.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <template <class> class Rule>
inline constexpr int kMeasured = measures<Rule> ? Rule<float>::states.size : 0;

template <template <class> class Rule, class P, class S, bool Bounded>
Measured measure_chunk(const StepChunk& chunk, const double* coefs) {
  using T = Compute<P>;
  constexpr int kStates = kMeasured<Rule>;
  static_assert(kStates == 0 || kStates == 2);
  const Common<T> common(coefs);
  const Rule<T> rule(coefs + kCommonCoefs);
  const P* p = static_cast<const P*>(chunk.p);
  const P* g = static_cast<const P*>(chunk.g);
  const S* s0 = static_cast<const S*>(chunk.states[0]);
  const S* s1 = static_cast<const S*>(chunk.states[1]);
  Lanes<SumSquares> updates, params;
  for (Index begin = 0; begin < chunk.n; begin += kLaneBlock) {
    const Index n = chunk.n - begin < kLaneBlock ? chunk.n - begin : kLaneBlock;
    alignas(64) T u[kLaneBlock];
    FO_INDEPENDENT
    for (Index i = 0; i < n; ++i) {
      const T old = load(p[begin + i]);
      const T gradient = common.template gradient<Bounded>(load(g[begin + i]), old);
      if constexpr (kStates > 0) {
        T state[2] = {load(s0[begin + i]), load(s1[begin + i])};
        u[i] = rule(gradient, old, state);
      } else {
        u[i] = gradient;
      }
    }
    updates.push(n, u);
    params.push(n, p + begin);
  }
  return {updates.value(), params.value()};
}

// Rules that measure nothing of their own share the kernels of one of them.
template <template <class> class Rule, class P, class S>
constexpr BoundedKernels bounded_kernels() {
  if constexpr (measures<Rule>) {
    return {{measure_chunk<Rule, P, S, false>, measure_chunk<Rule, P, S, true>}};
  } else {
    return {{measure_chunk<Sgd, P, S, false>, measure_chunk<Sgd, P, S, true>}};
  }
}

template <template <class> class Rule>
constexpr MeasureKernels measure_kernels() {
  return {{bounded_kernels<Rule, float, float>(), bounded_kernels<Rule, double, double>(),
           bounded_kernels<Rule, Bf16, float>(), bounded_kernels<Rule, F16, float>()},
          kMeasured<Rule>};
}

template <class List>
struct Table;
template <template <class> class... Rule>
struct Table<Formulas<Rule...>> {
  static constexpr MeasureKernels rows[] = {measure_kernels<Rule>()...};
};

}  // namespace

const MeasureKernels* measure_table() { return Table<Rules>::rows; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
