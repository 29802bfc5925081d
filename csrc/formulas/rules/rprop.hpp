// Rprop: steps that grow while the gradient keeps its sign and shrink where it turns, whatever its size.
// Riedmiller and Braun, A Direct Adaptive Method for Faster Backpropagation Learning, 1993; as in torch a
// step that overshot is not taken back.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Rprop {
  static constexpr const char* name = "rprop";
  static constexpr Names states{"prev", "step_size"};
  static constexpr Names coefs{"eta_minus", "eta_plus", "smallest", "largest"};
  T eta_minus, eta_plus, smallest, largest;
  FO_HD explicit Rprop(const double* c)
      : eta_minus(T(c[0])), eta_plus(T(c[1])), smallest(T(c[2])), largest(T(c[3])) {}
  FO_HD T operator()(T g, T, T* s) const {
    const T turn = sign(g) * sign(s[0]);
    const T factor = select(turn > T(0), eta_plus, select(turn < T(0), eta_minus, T(1)));
    s[1] = max(min(s[1] * factor, largest), smallest);
    s[0] = select(turn < T(0), T(0), g);
    return sign(s[0]) * s[1];
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
