// Adam; AdamW is the same rule under the driver's decoupled decay.
// Kingma and Ba, Adam, ICLR 2015; Loshchilov and Hutter, Decoupled Weight Decay, ICLR 2019.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// The two running moments that the Adam family shares.
template <class T>
struct Moments {
  T beta1, rest1, beta2, rest2;
  FO_HD explicit Moments(const double* c)
      : beta1(T(c[0])), rest1(T(1.0 - c[0])), beta2(T(c[1])), rest2(T(1.0 - c[1])) {}
  FO_HD void update(T g, T* s) const {
    s[0] = flushed(fma(beta1, s[0], rest1 * g));
    s[1] = fma(beta2, s[1], rest2 * g * g);
  }
};

// rsqrt_bc2 is 1 / sqrt(1 - beta2^t), or 1 where both bias corrections are part of the step size; eps_root is
// an epsilon inside the root, beside moments that are not corrected.
template <class T>
struct Adam {
  static constexpr const char* name = "adam";
  static constexpr Names states{"exp_avg", "exp_avg_sq"};
  static constexpr Names coefs{"beta1", "beta2", "rsqrt_bc2", "eps", "eps_root"};
  Moments<T> moments;
  T rsqrt_bc2, eps, eps_root;
  FO_HD explicit Adam(const double* c) : moments(c), rsqrt_bc2(T(c[2])), eps(T(c[3])), eps_root(T(c[4])) {}
  FO_HD T denominator(T v) const { return fma(sqrt(v + eps_root), rsqrt_bc2, eps); }
  FO_HD T operator()(T g, T, T* s) const {
    moments.update(g, s);
    return s[0] / denominator(s[1]);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
