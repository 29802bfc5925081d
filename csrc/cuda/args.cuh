// What host code hands to a kernel of any formula and storage type.
#pragma once

#include "cuda/launch.cuh"
#include "formulas/registry.hpp"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// f(S()) for the storage type S.
template <class F>
void with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32:
      return f(float());
    case DType::f64:
      return f(double());
    case DType::bf16:
      return f(Bf16());
    case DType::f16:
      return f(F16());
  }
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
