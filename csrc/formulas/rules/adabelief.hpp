// AdaBelief: Adam that divides by how far gradients stray from their average.
// Zhuang et al., AdaBelief Optimizer, NeurIPS 2020.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Adabelief {
  static constexpr const char* name = "adabelief";
  static constexpr Names states{"exp_avg", "exp_avg_var"};
  static constexpr Names coefs{"beta1", "beta2", "rsqrt_bc2", "eps"};
  T beta1, rest1, beta2, rest2, rsqrt_bc2, eps;
  FO_HD explicit Adabelief(const double* c)
      : beta1(T(c[0])),
        rest1(T(1.0 - c[0])),
        beta2(T(c[1])),
        rest2(T(1.0 - c[1])),
        rsqrt_bc2(T(c[2])),
        eps(T(c[3])) {}
  FO_HD T operator()(T g, T, T* s) const {
    s[0] = flushed(fma(beta1, s[0], rest1 * g));
    const T stray = g - s[0];
    s[1] = fma(beta2, s[1], rest2 * stray * stray) + eps;
    return s[0] / fma(sqrt(s[1]), rsqrt_bc2, eps);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
