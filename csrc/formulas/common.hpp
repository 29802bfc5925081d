// What all optimizers share around their rule's direction: the gradient before it, the update after it.
#pragma once

#include "core/dispatch.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// Whether a step with these coefficients clips by value or has an L1 penalty.
FO_HD bool is_bounded(const double* c) { return is_finite(c[kClipValue]) || c[kL1] != 0.0; }

// What a tensor multiplies its row of coefficients by: the gradient with its clipping and L1 penalty, the L2
// penalty, the learning rate.
struct Factors {
  static constexpr int kSize = 3;
  double gradient = 1.0, l2 = 1.0, lr = 1.0;
};

// p becomes p * of_parameter + g * of_gradient.
struct LinearUpdate {
  double of_gradient, of_parameter;
};
// What a step of plain gradient descent with these coefficients is, where it is not bounded.
FO_HD LinearUpdate linear_update(const double* c) { return {-c[4] * c[0], c[5] - c[4] * c[3]}; }

template <class T>
struct Common {
  T grad_scale, clip_value, l1, l2, lr, decay, ema_rest;
  // scale: one more factor of the gradient, where it is known on the device alone.
  FO_HD explicit Common(const double* c, double scale = 1.0, const Factors& by = {})
      : grad_scale(T(c[0] * by.gradient * scale)),
        clip_value(T(c[1] * by.gradient)),
        l1(T(c[2] * by.gradient)),
        l2(T(c[3] * by.l2)),
        lr(T(c[4] * by.lr)),
        decay(T(c[5])),
        ema_rest(T(1.0 - c[6])) {}

  // Clipping and the L1 penalty cost a quarter of an SGD step in cache, so those without go without.
  template <bool Bounded>
  FO_HD T gradient(T g, T p) const {
    g *= grad_scale;
    if constexpr (Bounded) g = select(g > clip_value, clip_value, select(g < -clip_value, -clip_value, g));
    g = fma(l2, p, g);
    if constexpr (Bounded) g = fma(l1, sign(p), g);
    return g;
  }
  FO_HD T parameter(T p, T u) const { return fma(-lr, u, p * decay); }
  FO_HD T average(T ema, T p) const { return fma(ema_rest, p - ema, ema); }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
