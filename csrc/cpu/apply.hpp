// An activation's value or gradient over a run of elements: the loops that the elementwise driver and the
// gemm driver's epilogue share, and their tables in registry order.
#pragma once

#include "cpu/lanes.hpp"
#include "cpu/stream.hpp"
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
    dx[i] = chain(dy[i], f.grad(F<T>::grad_needs_x ? x[i] : T(0), F<T>::grad_needs_y ? y[i] : T(0)));
}

// The same into whole lines past the caches: n is a multiple of kLine, y and dx are 64-byte aligned.
template <template <class> class F, class T>
static void stream_value(const T* x, T* y, Index n, const double* params) {
  const F<T> f(params);
  for (Index i = 0; i < n; i += kLine<T>) {
    alignas(64) T line[kLine<T>];
    FO_LANES
    for (Index l = 0; l < kLine<T>; ++l) line[l] = f.value(x[i + l]);
    stream_line(line, y + i);
  }
}

template <template <class> class F, class T>
static void stream_grad(const T* dy, const T* x, const T* y, T* dx, Index n, const double* params) {
  const F<T> f(params);
  for (Index i = 0; i < n; i += kLine<T>) {
    alignas(64) T line[kLine<T>];
    FO_LANES
    for (Index l = 0; l < kLine<T>; ++l) {
      const Index j = i + l;
      line[l] = chain(dy[j], f.grad(F<T>::grad_needs_x ? x[j] : T(0), F<T>::grad_needs_y ? y[j] : T(0)));
    }
    stream_line(line, dx + i);
  }
}

template <class List, class T>
struct ActivationLoops;
template <template <class> class... F, class T>
struct ActivationLoops<Formulas<F...>, T> {
  static constexpr Value<T> values[] = {value<F, T>...}, stream_values[] = {stream_value<F, T>...};
  static constexpr Grad<T> grads[] = {grad<F, T>...}, stream_grads[] = {stream_grad<F, T>...};
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
