// RAdam: Adam whose denominator is left out while too few gradients are known, and rectified after.
// Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, ICLR 2020.
#pragma once

#include "formulas/names.hpp"
#include "formulas/rules/adam.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// With `rectified` 0 the step is that of momentum; the rectification itself is part of the step size.
template <class T>
struct Radam {
  static constexpr const char* name = "radam";
  static constexpr Names states{"exp_avg", "exp_avg_sq"};
  static constexpr Names coefs{"beta1", "beta2", "eps", "rectified"};
  Moments<T> moments;
  T eps, rectified;
  FO_HD explicit Radam(const double* c) : moments(c), eps(T(c[2])), rectified(T(c[3])) {}
  FO_HD T operator()(T g, T, T* s) const {
    moments.update(g, s);
    return s[0] / select(rectified > T(0), sqrt(s[1]) + eps, T(1));
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
