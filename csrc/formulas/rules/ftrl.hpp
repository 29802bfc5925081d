// FTRL-Proximal: the point that is best for all gradients so far, each with a proximal term, and an L1 and an
// L2 penalty. McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// rlr is 1 / learning rate; l2 and shrinkage count twice; decay shrinks the parameter before the step. The
// rate of an element falls with a power of its accumulator: as a rule its root, which is a rule of its own
// that runs at the speed of memory. The direction is what lies between the parameter and the new one, which
// L1 makes exactly 0.
template <class T, bool OfRoot>
struct FtrlRule {
  static constexpr const char* name = OfRoot ? "ftrl" : "ftrl_power";
  static constexpr Names states{"accumulator", "linear"};
  static constexpr Names coefs = OfRoot ? Names("rlr", "l1_strength", "l2", "shrinkage", "decay")
                                        : Names("rlr", "l1_strength", "l2", "shrinkage", "decay", "power");
  T rlr, l1, l2, shrinkage, decay, power, of_zero;
  FO_HD explicit FtrlRule(const double* c)
      : rlr(T(c[0])),
        l1(T(c[1])),
        l2(T(c[2])),
        shrinkage(T(c[3])),
        decay(T(c[4])),
        power(OfRoot ? T(0.5) : T(c[5])),
        of_zero(power == T(0) ? T(1) : T(0)) {}
  FO_HD T raised(T n) const {
    if constexpr (OfRoot) return sqrt(n);
    return select(n == T(0), of_zero, exp(power * log(n)));
  }
  FO_HD T operator()(T g, T p, T* s) const {
    const T old = p * decay, before = raised(s[0]);
    s[0] = fma(g, g, s[0]);
    const T now = raised(s[0]);
    s[1] += fma(-(now - before) * rlr, old, fma(shrinkage, old, g));
    const T curvature = fma(now, rlr, l2);
    const T least = (max(-l1, min(s[1], l1)) - s[1]) / curvature;
    return p - select(curvature == T(0), old, least);
  }
};

template <class T>
using Ftrl = FtrlRule<T, true>;
template <class T>
using FtrlPower = FtrlRule<T, false>;

}  // namespace FASTOPT_ISA
}  // namespace fastopt
