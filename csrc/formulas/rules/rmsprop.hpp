// RMSprop, with optional centring and momentum; each combination has its own state and so is its own rule.
// Tieleman and Hinton, Lecture 6.5, 2012; centred form: Graves, Generating Sequences, 2013.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// eps_root is an epsilon inside the root; k scales what goes into the momentum: 1, or the learning rate of
// that step.
template <class T, bool WithMomentum, bool Centered>
struct RmspropRule {
  static constexpr const char* name = WithMomentum
                                          ? (Centered ? "rmsprop_centered_momentum" : "rmsprop_momentum")
                                          : (Centered ? "rmsprop_centered" : "rmsprop");
  static constexpr Names states = WithMomentum
                                      ? (Centered ? Names("square_avg", "momentum_buffer", "grad_avg")
                                                  : Names("square_avg", "momentum_buffer"))
                                      : (Centered ? Names("square_avg", "grad_avg") : Names("square_avg"));
  static constexpr Names coefs =
      WithMomentum ? Names("alpha", "eps", "eps_root", "mu", "k") : Names("alpha", "eps", "eps_root");
  T alpha, rest, eps, eps_root, mu, k;
  FO_HD explicit RmspropRule(const double* c)
      : alpha(T(c[0])),
        rest(T(1.0 - c[0])),
        eps(T(c[1])),
        eps_root(T(c[2])),
        mu(WithMomentum ? T(c[3]) : T(0)),
        k(WithMomentum ? T(c[4]) : T(0)) {}
  FO_HD T operator()(T g, T, T* s) const {
    s[0] = fma(alpha, s[0], rest * g * g);
    T variance = s[0];
    if constexpr (Centered) {
      T& mean = s[WithMomentum ? 2 : 1];
      mean = flushed(fma(alpha, mean, rest * g));
      variance = max(fma(-mean, mean, variance), T(0));  // rounding can take it below 0
    }
    const T u = g / (sqrt(variance + eps_root) + eps);
    if constexpr (WithMomentum) return s[1] = flushed(fma(mu, s[1], k * u));
    return u;
  }
};

template <class T>
using Rmsprop = RmspropRule<T, false, false>;
template <class T>
using RmspropMomentum = RmspropRule<T, true, false>;
template <class T>
using RmspropCentered = RmspropRule<T, false, true>;
template <class T>
using RmspropCenteredMomentum = RmspropRule<T, true, true>;

}  // namespace FASTOPT_ISA
}  // namespace fastopt
