// Prodigy: Adam whose step size is an estimate d of the distance to the solution.
// Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, ICML 2024.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// The moments are those of d times the gradient: k1 = d (1 - beta1), k2 = d^2 (1 - beta2).
template <class T>
struct Prodigy {
  static constexpr const char* name = "prodigy";
  static constexpr Names states{"exp_avg", "exp_avg_sq"};
  static constexpr Names coefs{"beta1", "beta2", "k1", "k2", "eps"};
  T beta1, beta2, k1, k2, eps;
  FO_HD explicit Prodigy(const double* c)
      : beta1(T(c[0])), beta2(T(c[1])), k1(T(c[2])), k2(T(c[3])), eps(T(c[4])) {}
  FO_HD T operator()(T g, T, T* s) const {
    s[0] = flushed(fma(beta1, s[0], k1 * g));
    s[1] = fma(beta2, s[1], k2 * g * g);
    return s[0] / (sqrt(s[1]) + eps);
  }
};

// What d is estimated from, in a pass before the update that leaves the parameter alone (a step size of 0):
// s, the weighted sum of gradients, and the terms of the product of the gradient and the way come since p0.
// With `started` 0 the parameter is p0.
template <class T>
struct ProdigyEstimate {
  static constexpr const char* name = "prodigy_estimate";
  static constexpr Names states{"s", "p0", "product"};
  static constexpr Names coefs{"beta3", "k", "started"};
  T beta3, k, started;
  FO_HD explicit ProdigyEstimate(const double* c) : beta3(T(c[0])), k(T(c[1])), started(T(c[2])) {}
  FO_HD T operator()(T g, T p, T* s) const {
    s[0] = flushed(fma(beta3, s[0], k * g));
    s[1] = select(started > T(0), s[1], p);
    s[2] = g * (s[1] - p);
    return T(0);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
