// Sophia: a mean of the gradients over an estimate of the Hessian's diagonal, each element's step limited.
// Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training, ICLR
// 2024.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// The estimate is only read here: it is taken in by steps of its own, far fewer.
template <class T>
struct Sophia {
  static constexpr const char* name = "sophia";
  static constexpr Names states{"exp_avg", "hessian"};
  static constexpr Names coefs{"beta1", "rho", "eps"};
  T beta1, rest1, rho, eps;
  FO_HD explicit Sophia(const double* c) : beta1(T(c[0])), rest1(T(1.0 - c[0])), rho(T(c[1])), eps(T(c[2])) {}
  FO_HD T operator()(T g, T, T* s) const {
    s[0] = flushed(fma(beta1, s[0], rest1 * g));
    const T u = s[0] / max(rho * s[1], eps);
    return select(u > T(1), T(1), select(u < T(-1), T(-1), u));
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
