// ASGD: stochastic gradient descent that keeps an average of the parameters beside them.
// Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// eta and decay are what the driver moves the parameter with: the average takes in the parameter after it.
template <class T>
struct Asgd {
  static constexpr const char* name = "asgd";
  static constexpr Names states{"ax"};
  static constexpr Names coefs{"eta", "decay", "mu"};
  T eta, decay, mu;
  FO_HD explicit Asgd(const double* c) : eta(T(c[0])), decay(T(c[1])), mu(T(c[2])) {}
  FO_HD T operator()(T g, T p, T* s) const {
    const T moved = fma(-eta, g, p * decay);
    s[0] = select(mu == T(1), moved, fma(mu, moved - s[0], s[0]));
    return g;
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
