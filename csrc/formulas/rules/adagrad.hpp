// AdaGrad: each coordinate's step shrinks with the sum of its squared gradients.
// Duchi, Hazan and Singer, Adaptive Subgradient Methods, JMLR 2011.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Adagrad {
  static constexpr const char* name = "adagrad";
  static constexpr Names states{"sum"};
  static constexpr Names coefs{"eps", "eps_root"};
  T eps, eps_root;
  FO_HD explicit Adagrad(const double* c) : eps(T(c[0])), eps_root(T(c[1])) {}
  FO_HD T operator()(T g, T, T* s) const {
    s[0] = fma(g, g, s[0]);
    return g / (sqrt(s[0] + eps_root) + eps);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
