// An activation's value or gradient over a run of elements: the loops that the elementwise driver and the
// gemm driver's epilogue share, and their tables in registry order.
#pragma once

#include "cpu/storage.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
using Value = void (*)(const T* x, T* y, Index n, const double* params);
template <class T>
using Grad = void (*)(const T* dy, const T* x, const T* y, T* dx, Index n, const double* params);

template <template <class> class F, class T>
static void value(const T* x, T* y, Index n, const double* params) {
  const F<T> f(params);
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) y[i] = f.value(x[i]);
}

template <template <class> class F, class T>
static void grad(const T* dy, const T* x, const T* y, T* dx, Index n, const double* params) {
  const F<T> f(params);
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i)
    dx[i] = dy[i] * f.grad(F<T>::grad_needs_x ? x[i] : T(0), F<T>::grad_needs_y ? y[i] : T(0));
}

template <class List, class T>
struct ActivationLoops;
template <template <class> class... F, class T>
struct ActivationLoops<Formulas<F...>, T> {
  static constexpr Value<T> values[] = {value<F, T>...};
  static constexpr Grad<T> grads[] = {grad<F, T>...};
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
