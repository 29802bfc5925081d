// LAMB: Adam's direction with the decay inside, scaled by the norm of the whole parameter over its own.
// You et al., Large Batch Optimization for Deep Learning, ICLR 2020.
#pragma once

#include "formulas/rules/adam.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// rsqrt_bc2 and rbc1 are the bias corrections.
template <class T>
struct Lamb {
  static constexpr const char* name = "lamb";
  static constexpr bool scaled_by_norm = true;
  static constexpr Names states{"exp_avg", "exp_avg_sq"};
  static constexpr Names coefs{"beta1", "beta2", "rsqrt_bc2", "eps", "rbc1", "decay"};
  Moments<T> moments;
  T rsqrt_bc2, eps, rbc1, decay;
  FO_HD explicit Lamb(const double* c)
      : moments(c), rsqrt_bc2(T(c[2])), eps(T(c[3])), rbc1(T(c[4])), decay(T(c[5])) {}
  FO_HD T operator()(T g, T p, T* s) const {
    moments.update(g, s);
    return fma(decay, p, s[0] * rbc1 / fma(sqrt(s[1]), rsqrt_bc2, eps));
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
