// Heavy-ball momentum and its look-ahead form.
// Polyak 1964; Nesterov 1983, in the form of Sutskever et al., On the importance of initialization, 2013.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// The buffer is mu * b + k * g. k carries the dampening (torch), the learning rate (velocity form) or 1 - mu
// (moving average). The buffer starts at zero, so k = 1 on the first step starts it at the gradient.
template <class T>
struct Momentum {
  static constexpr const char* name = "momentum";
  static constexpr Names states{"momentum_buffer"};
  static constexpr Names coefs{"mu", "k"};
  T mu, k;
  FO_HD explicit Momentum(const double* q) : mu(T(q[0])), k(T(q[1])) {}
  FO_HD T operator()(T g, T, T* s) const { return s[0] = flushed(fma(mu, s[0], k * g)); }
};

// The direction looks one decay of the buffer ahead; c scales the gradient as k scales it into the buffer.
template <class T>
struct Nesterov {
  static constexpr const char* name = "nesterov";
  static constexpr Names states{"momentum_buffer"};
  static constexpr Names coefs{"mu", "k", "c"};
  Momentum<T> momentum;
  T c;
  FO_HD explicit Nesterov(const double* q) : momentum(q), c(T(q[2])) {}
  FO_HD T operator()(T g, T p, T* s) const { return fma(momentum.mu, momentum(g, p, s), c * g); }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
