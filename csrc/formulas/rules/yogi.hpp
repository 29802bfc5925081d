// Yogi: Adam whose second moment changes by no more than the squared gradient, whichever is larger.
// Zaheer et al., Adaptive Methods for Nonconvex Optimization, NeurIPS 2018.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Yogi {
  static constexpr const char* name = "yogi";
  static constexpr Names states{"exp_avg", "exp_avg_sq"};
  static constexpr Names coefs{"beta1", "beta2", "rsqrt_bc2", "eps"};
  T beta1, rest1, rest2, rsqrt_bc2, eps;
  FO_HD explicit Yogi(const double* c)
      : beta1(T(c[0])), rest1(T(1.0 - c[0])), rest2(T(1.0 - c[1])), rsqrt_bc2(T(c[2])), eps(T(c[3])) {}
  FO_HD T operator()(T g, T, T* s) const {
    s[0] = flushed(fma(beta1, s[0], rest1 * g));
    const T square = g * g;
    s[1] = fma(rest2 * sign(square - s[1]), square, s[1]);
    return s[0] / fma(sqrt(s[1]), rsqrt_bc2, eps);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
