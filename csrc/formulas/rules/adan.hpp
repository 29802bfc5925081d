// Adan: Adam with Nesterov's look-ahead by a mean of the gradients' differences.
// Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, 2022.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// neg_pre_grad is the negative gradient of the step before; with `started` 0 there was none. k_diff weighs
// the mean difference: beta2 and the bias corrections.
template <class T>
struct Adan {
  static constexpr const char* name = "adan";
  static constexpr Names states{"exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"};
  static constexpr Names coefs{"beta1", "beta2", "beta3", "k_diff", "rsqrt_bc3", "eps", "started"};
  T beta1, rest1, beta2, rest2, beta3, rest3, k_diff, rsqrt_bc3, eps, started;
  FO_HD explicit Adan(const double* c)
      : beta1(T(c[0])),
        rest1(T(1.0 - c[0])),
        beta2(T(c[1])),
        rest2(T(1.0 - c[1])),
        beta3(T(c[2])),
        rest3(T(1.0 - c[2])),
        k_diff(T(c[3])),
        rsqrt_bc3(T(c[4])),
        eps(T(c[5])),
        started(T(c[6])) {}
  FO_HD T operator()(T g, T, T* s) const {
    const T difference = select(started > T(0), g + s[3], T(0));
    const T ahead = fma(beta2, difference, g);
    s[0] = flushed(fma(beta1, s[0], rest1 * g));
    s[1] = flushed(fma(beta2, s[1], rest2 * difference));
    s[2] = fma(beta3, s[2], rest3 * ahead * ahead);
    s[3] = -g;
    return fma(k_diff, s[1], s[0]) / fma(sqrt(s[2]), rsqrt_bc3, eps);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
