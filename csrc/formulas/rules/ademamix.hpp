// AdEMAMix: Adam with a second, slow mean of the gradients beside the fast one.
// Pagliardini, Ablin and Grangier, The AdEMAMix Optimizer: Better, Faster, Older, 2024.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// The fast mean's bias correction is part of the step size, and so of alpha, which weighs the slow mean.
template <class T>
struct Ademamix {
  static constexpr const char* name = "ademamix";
  static constexpr Names states{"exp_avg_fast", "exp_avg_slow", "exp_avg_sq"};
  static constexpr Names coefs{"beta1", "beta2", "beta3", "alpha", "rsqrt_bc2", "eps"};
  T beta1, rest1, beta2, rest2, beta3, rest3, alpha, rsqrt_bc2, eps;
  FO_HD explicit Ademamix(const double* c)
      : beta1(T(c[0])),
        rest1(T(1.0 - c[0])),
        beta2(T(c[1])),
        rest2(T(1.0 - c[1])),
        beta3(T(c[2])),
        rest3(T(1.0 - c[2])),
        alpha(T(c[3])),
        rsqrt_bc2(T(c[4])),
        eps(T(c[5])) {}
  FO_HD T operator()(T g, T, T* s) const {
    s[0] = flushed(fma(beta1, s[0], rest1 * g));
    s[1] = flushed(fma(beta3, s[1], rest3 * g));
    s[2] = fma(beta2, s[2], rest2 * g * g);
    return fma(alpha, s[1], s[0]) / fma(sqrt(s[2]), rsqrt_bc2, eps);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
