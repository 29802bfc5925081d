// The parameters that host code hands to a kernel of any formula.
#pragma once

#include "cuda/elements.cuh"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// Where a formula is in its list.
template <template <class> class Wanted, template <class> class... F>
constexpr int index_in(Formulas<F...>) {
  int index = 0;
  (void)((std::is_same_v<Wanted<float>, F<float>> || (++index, false)) || ...);
  return index;
}

// A formula's parameters by value: the kernel runs when the caller's may be gone.
struct Params {
  double at[Names::kMax];
};

template <class List>
struct ParamCounts;
template <template <class> class... F>
struct ParamCounts<Formulas<F...>> {
  static constexpr int at[] = {F<double>::params.size...};
};

// Of no formula, a negative one, there are none.
template <class List>
Params copied(int formula, const double* params) {
  Params own = {};
  const int size = formula < 0 ? 0 : ParamCounts<List>::at[formula];
  for (int i = 0; i < size; ++i) own.at[i] = params[i];
  return own;
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
