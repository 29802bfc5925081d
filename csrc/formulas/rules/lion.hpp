// Lion: the sign of an average of gradients.
// Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Lion {
  static constexpr const char* name = "lion";
  static constexpr Names states{"exp_avg"};
  static constexpr Names coefs{"beta1", "beta2"};
  T beta1, rest1, beta2, rest2;
  FO_HD explicit Lion(const double* c)
      : beta1(T(c[0])), rest1(T(1.0 - c[0])), beta2(T(c[1])), rest2(T(1.0 - c[1])) {}
  FO_HD T operator()(T g, T, T* s) const {
    const T u = sign(fma(beta1, s[0], rest1 * g));
    s[0] = flushed(fma(beta2, s[0], rest2 * g));
    return u;
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
