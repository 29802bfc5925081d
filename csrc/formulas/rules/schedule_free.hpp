// Schedule-free SGD and AdamW: the gradient is taken at y, between a base sequence z and its average x.
// Defazio et al., The Road Less Scheduled, NeurIPS 2024; as in the authors' code the parameter holds y and x
// is never stored.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// The parameter's move: c of the way from y to z, and k along the gradient. With `started` 0 the parameter is
// the first z. The driver's step size is 1.
template <class T>
struct ScheduleFreeSgd {
  static constexpr const char* name = "schedule_free_sgd";
  static constexpr Names states{"z"};
  static constexpr Names coefs{"c", "k", "lr", "started"};
  T c, k, lr, started;
  FO_HD explicit ScheduleFreeSgd(const double* q) : c(T(q[0])), k(T(q[1])), lr(T(q[2])), started(T(q[3])) {}
  FO_HD T operator()(T g, T p, T* s) const {
    const T z = select(started > T(0), s[0], p);
    s[0] = fma(-lr, g, z);
    return fma(c, p - z, k * g);
  }
};

template <class T>
struct ScheduleFreeAdamw {
  static constexpr const char* name = "schedule_free_adamw";
  static constexpr Names states{"z", "exp_avg_sq"};
  static constexpr Names coefs{"c", "k", "lr", "started", "beta2", "rsqrt_bc2", "eps", "weight_decay"};
  ScheduleFreeSgd<T> move;
  T beta2, rest2, rsqrt_bc2, eps, weight_decay;
  FO_HD explicit ScheduleFreeAdamw(const double* q)
      : move(q),
        beta2(T(q[4])),
        rest2(T(1.0 - q[4])),
        rsqrt_bc2(T(q[5])),
        eps(T(q[6])),
        weight_decay(T(q[7])) {}
  FO_HD T operator()(T g, T p, T* s) const {
    s[1] = fma(beta2, s[1], rest2 * g * g);
    return move(fma(weight_decay, p, g / fma(sqrt(s[1]), rsqrt_bc2, eps)), p, s);
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
