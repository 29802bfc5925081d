// Stochastic gradient descent.
// Robbins and Monro, A Stochastic Approximation Method, 1951.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Sgd {
  static constexpr const char* name = "sgd";
  static constexpr Names states{};
  static constexpr Names coefs{};
  FO_HD explicit Sgd(const double*) {}
  FO_HD T operator()(T g, T, T*) const { return g; }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
