// AdaDelta: the ratio of two running root mean squares sets the step.
// Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Adadelta {
  static constexpr const char* name = "adadelta";
  static constexpr Names states{"square_avg", "acc_delta"};
  static constexpr Names coefs{"rho", "eps"};
  T rho, rest, eps;
  FO_HD explicit Adadelta(const double* c) : rho(T(c[0])), rest(T(1.0 - c[0])), eps(T(c[1])) {}
  FO_HD T operator()(T g, T, T* s) const {
    s[0] = fma(rho, s[0], rest * g * g);
    const T delta = sqrt(s[1] + eps) / sqrt(s[0] + eps) * g;
    s[1] = fma(rho, s[1], rest * delta * delta);
    return delta;
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
