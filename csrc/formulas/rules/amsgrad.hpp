// AMSGrad: Adam whose second moment never shrinks.
// Reddi, Kale and Kumar, On the Convergence of Adam and Beyond, ICLR 2018.
#pragma once

#include "formulas/rules/adam.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// max_scale weighs the moments that enter the maximum: 1 for torch's, the bias correction for corrected ones.
template <class T>
struct Amsgrad {
  static constexpr const char* name = "amsgrad";
  static constexpr Names states{"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr Names coefs{"beta1", "beta2", "rsqrt_bc2", "eps", "eps_root", "max_scale"};
  Adam<T> adam;
  T max_scale;
  FO_HD explicit Amsgrad(const double* c) : adam(c), max_scale(T(c[5])) {}
  FO_HD T operator()(T g, T, T* s) const {
    adam.moments.update(g, s);
    s[2] = max(s[1] * max_scale, s[2]);
    return s[0] / adam.denominator(s[2]);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
