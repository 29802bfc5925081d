// ADOPT: Adam that divides by the second moment of the step before, and before it takes the mean.
// Taniguchi et al., ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate, NeurIPS 2024.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// The first step only starts the second moment: with beta2, clip and the step size 0.
template <class T>
struct Adopt {
  static constexpr const char* name = "adopt";
  static constexpr Names states{"exp_avg", "exp_avg_sq"};
  static constexpr Names coefs{"beta1", "beta2", "eps", "clip"};
  T beta1, rest1, beta2, rest2, eps, clip;
  FO_HD explicit Adopt(const double* c)
      : beta1(T(c[0])),
        rest1(T(1.0 - c[0])),
        beta2(T(c[1])),
        rest2(T(1.0 - c[1])),
        eps(T(c[2])),
        clip(T(c[3])) {}
  FO_HD T operator()(T g, T, T* s) const {
    const T u = g / max(sqrt(s[1]), eps);
    const T limited = select(u > clip, clip, select(u < -clip, -clip, u));
    s[0] = flushed(fma(beta1, s[0], rest1 * limited));
    s[1] = fma(beta2, s[1], rest2 * g * g);
    return s[0];
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
