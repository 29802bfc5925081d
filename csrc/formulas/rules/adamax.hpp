// Adamax: Adam with the infinity norm of the gradients seen.
// Kingma and Ba, Adam, ICLR 2015, section 7.1; eps inside the maximum, as in torch, or eps_outside added to
// it.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Adamax {
  static constexpr const char* name = "adamax";
  static constexpr Names states{"exp_avg", "exp_inf"};
  static constexpr Names coefs{"beta1", "beta2", "eps", "eps_outside"};
  T beta1, rest1, beta2, eps, eps_outside;
  FO_HD explicit Adamax(const double* c)
      : beta1(T(c[0])), rest1(T(1.0 - c[0])), beta2(T(c[1])), eps(T(c[2])), eps_outside(T(c[3])) {}
  FO_HD T operator()(T g, T, T* s) const {
    s[0] = flushed(fma(beta1, s[0], rest1 * g));
    s[1] = max(abs(g) + eps, beta2 * s[1]);
    return s[0] / (s[1] + eps_outside);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
