// NAdam: Adam with Nesterov's look-ahead.
// Dozat, Incorporating Nesterov Momentum into Adam, 2016.
#pragma once

#include "formulas/rules/adam.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// c_g and c_m weigh the gradient and the first moment; both carry their bias corrections and momentum
// schedule.
template <class T>
struct Nadam {
  static constexpr const char* name = "nadam";
  static constexpr Names states{"exp_avg", "exp_avg_sq"};
  static constexpr Names coefs{"beta1", "beta2", "rsqrt_bc2", "eps", "c_g", "c_m"};
  Moments<T> moments;
  T rsqrt_bc2, eps, c_g, c_m;
  FO_HD explicit Nadam(const double* c)
      : moments(c), rsqrt_bc2(T(c[2])), eps(T(c[3])), c_g(T(c[4])), c_m(T(c[5])) {}
  FO_HD T operator()(T g, T, T* s) const {
    moments.update(g, s);
    return fma(c_m, s[0], c_g * g) / fma(sqrt(s[1]), rsqrt_bc2, eps);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
