// AMSGrad: Adam whose second moment never shrinks.
// Reddi, Kale and Kumar, On the Convergence of Adam and Beyond, ICLR 2018.
#pragma once

#include "formulas/rules/adam.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Amsgrad {
  static constexpr const char* name = "amsgrad";
  static constexpr Names states{"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr Names coefs = Adam<T>::coefs;
  Adam<T> adam;
  FO_HD explicit Amsgrad(const double* c) : adam(c) {}
  FO_HD T operator()(T g, T, T* s) const {
    adam.moments.update(g, s);
    s[2] = max(s[1], s[2]);  // of the uncorrected moments, as torch takes it
    return s[0] / fma(sqrt(s[2]), adam.rsqrt_bc2, adam.eps);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
