// Activations: y = value(x), dy/dx = grad(x, y). grad_needs_x and grad_needs_y say which of the two a
// gradient reads, so that the other need not be kept. A NaN stays a NaN everywhere.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// dy times a derivative. Where that is 0 nothing comes back, not even of an infinite dy. A mask does it: of a
// select GCC makes a branch around the load of dy.
template <class T>
FO_HD T chain(T dy, T derivative) {
  const Bits<T> mask = derivative == T(0) ? Bits<T>(0) : ~Bits<T>(0);
  return from_bits<T>(to_bits(dy * derivative) & mask);
}

// The kink at 0 has the gradient 0.
template <class T>
struct Relu {
  static constexpr const char* name = "relu";
  static constexpr Names params{};
  static constexpr bool grad_needs_x = false, grad_needs_y = true;
  FO_HD explicit Relu(const double*) {}
  FO_HD T value(T x) const { return select(x < T(0), T(0), x); }
  FO_HD T grad(T, T y) const { return select(y <= T(0), T(0), T(1)); }
};

// Maas, Hannun and Ng, Rectifier Nonlinearities Improve Neural Network Acoustic Models, 2013.
// The gradient reads x, not y: with a negative slope the sign of y says nothing.
template <class T>
struct LeakyRelu {
  static constexpr const char* name = "leaky_relu";
  static constexpr Names params{"negative_slope"};
  static constexpr bool grad_needs_x = true, grad_needs_y = false;
  T negative_slope;
  FO_HD explicit LeakyRelu(const double* c) : negative_slope(T(c[0])) {}
  FO_HD T value(T x) const { return select(x > T(0), x, negative_slope * x); }
  FO_HD T grad(T x, T) const { return select(x > T(0), T(1), negative_slope); }
};

template <class T>
struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr Names params{};
  static constexpr bool grad_needs_x = false, grad_needs_y = true;
  FO_HD explicit Sigmoid(const double*) {}
  FO_HD T value(T x) const { return sigmoid(x); }
  FO_HD T grad(T, T y) const { return y * (T(1) - y); }
};

template <class T>
struct Tanh {
  static constexpr const char* name = "tanh";
  static constexpr Names params{};
  static constexpr bool grad_needs_x = false, grad_needs_y = true;
  FO_HD explicit Tanh(const double*) {}
  FO_HD T value(T x) const { return tanh(x); }
  FO_HD T grad(T, T y) const { return fma(-y, y, T(1)); }
};

// x times the normal distribution's cumulative probability of x, exactly.
// Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
template <class T>
struct Gelu {
  static constexpr const char* name = "gelu";
  static constexpr Names params{};
  static constexpr bool grad_needs_x = true, grad_needs_y = false;
  static constexpr T rsqrt_2pi = T(0.39894228040143267794);
  FO_HD explicit Gelu(const double*) {}
  FO_HD T value(T x) const { return x * normal_cdf(x); }
  FO_HD T grad(T x, T) const { return fma(x, rsqrt_2pi * exp_nonpositive(T(-0.5) * x * x), normal_cdf(x)); }
};

// The same paper's approximation, 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3). It is
// x sigmoid(2u), which loses nothing where tanh is near -1.
template <class T>
struct GeluTanh {
  static constexpr const char* name = "gelu_tanh";
  static constexpr Names params{};
  static constexpr bool grad_needs_x = true, grad_needs_y = false;
  static constexpr T two_k = T(1.59576912160573071176), cubic = T(0.044715);
  FO_HD explicit GeluTanh(const double*) {}
  FO_HD static T two_u(T x) { return two_k * x * fma(cubic * x, x, T(1)); }
  FO_HD T value(T x) const { return x * sigmoid(two_u(x)); }
  FO_HD T grad(T x, T) const {
    // Beyond 30 both the value and the slope have reached their limits, and x^2 could overflow.
    x = max(min(x, T(30)), T(-30));
    const T u = two_u(x), s = sigmoid(u);
    return fma(x * s * sigmoid(-u), two_k * fma(T(3) * cubic * x, x, T(1)), s);
  }
};

// Also known as swish. Elfwing, Uchibe and Doya, Sigmoid-Weighted Linear Units, 2017.
template <class T>
struct Silu {
  static constexpr const char* name = "silu";
  static constexpr Names params{};
  static constexpr bool grad_needs_x = true, grad_needs_y = false;
  FO_HD explicit Silu(const double*) {}
  FO_HD T value(T x) const { return x * sigmoid(x); }
  FO_HD T grad(T x, T) const {
    const T s = sigmoid(x);
    return fma(x * s, sigmoid(-x), s);
  }
};

// Clevert, Unterthiner and Hochreiter, Exponential Linear Units, ICLR 2016.
// The gradient reads x, not y: with a negative alpha the sign of y says nothing.
template <class T>
struct Elu {
  static constexpr const char* name = "elu";
  static constexpr Names params{"alpha"};
  static constexpr bool grad_needs_x = true, grad_needs_y = false;
  T alpha;
  FO_HD explicit Elu(const double* c) : alpha(T(c[0])) {}
  FO_HD T value(T x) const { return select(x > T(0), x, alpha * expm1(x)); }
  FO_HD T grad(T x, T) const { return select(x > T(0), T(1), alpha * exp(x)); }
};

// log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold.
// Dugas et al., Incorporating Second-Order Functional Knowledge for Better Option Pricing, NIPS 2000.
template <class T>
struct Softplus {
  static constexpr const char* name = "softplus";
  static constexpr Names params{"beta", "threshold"};
  static constexpr bool grad_needs_x = true, grad_needs_y = false;
  T beta, threshold;
  FO_HD explicit Softplus(const double* c) : beta(T(c[0])), threshold(T(c[1])) {}
  FO_HD T value(T x) const {
    const T z = beta * x;
    return select(z > threshold, x, (max(z, T(0)) + log1p(exp_nonpositive(-abs(z)))) / beta);
  }
  FO_HD T grad(T x, T) const {
    const T z = beta * x;
    return select(z > threshold, T(1), sigmoid(z));
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
