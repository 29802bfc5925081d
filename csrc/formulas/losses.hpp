// Losses of one element: the value and its derivative by the input x, together. t is the target.
#pragma once

#include "formulas/names.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class T>
struct Pair {
  T value, grad;
};

template <class T>
struct Mse {
  static constexpr const char* name = "mse";
  static constexpr Names params{};
  FO_HD explicit Mse(const double*) {}
  FO_HD Pair<T> operator()(T x, T t) const {
    const T d = x - t;
    return {d * d, T(2) * d};
  }
};

template <class T>
struct L1 {
  static constexpr const char* name = "l1";
  static constexpr Names params{};
  FO_HD explicit L1(const double*) {}
  FO_HD Pair<T> operator()(T x, T t) const {
    const T d = x - t;
    return {abs(d), sign(d)};
  }
};

// Quadratic within beta, linear beyond; L1 where beta is 0. Girshick, Fast R-CNN, ICCV 2015.
template <class T>
struct SmoothL1 {
  static constexpr const char* name = "smooth_l1";
  static constexpr Names params{"beta"};
  T beta;
  FO_HD explicit SmoothL1(const double* c) : beta(T(c[0])) {}
  FO_HD Pair<T> operator()(T x, T t) const {
    const T d = x - t, a = abs(d);
    const bool near = a < beta;
    const T slope = d / beta;
    return {select(near, T(0.5) * d * slope, a - T(0.5) * beta), select(near, slope, sign(d))};
  }
};

// Huber, Robust Estimation of a Location Parameter, 1964: smooth_l1 times delta.
template <class T>
struct Huber {
  static constexpr const char* name = "huber";
  static constexpr Names params{"delta"};
  T delta;
  FO_HD explicit Huber(const double* c) : delta(T(c[0])) {}
  FO_HD Pair<T> operator()(T x, T t) const {
    const T d = x - t, a = abs(d);
    return {select(a <= delta, T(0.5) * d * d, delta * (a - T(0.5) * delta)), max(min(d, delta), -delta)};
  }
};

// Binary cross-entropy of a probability. Logarithms end at -100 and the gradient's denominator at 1e-12, as
// in torch, so that a sure but wrong prediction costs a finite amount.
template <class T>
struct Bce {
  static constexpr const char* name = "bce";
  static constexpr Names params{};
  FO_HD explicit Bce(const double*) {}
  FO_HD Pair<T> operator()(T x, T t) const {
    const T log_x = max(log(x), T(-100)), log_rest = max(log1p(-x), T(-100));
    return {(t - T(1)) * log_rest - t * log_x, (x - t) / max((T(1) - x) * x, T(1e-12))};
  }
};

// The same of a logit: t pos_weight log(1 + e^-x) + (1 - t) log(1 + e^x), without overflow.
template <class T>
struct BceWithLogits {
  static constexpr const char* name = "bce_with_logits";
  static constexpr Names params{"pos_weight"};
  T pos_weight;
  FO_HD explicit BceWithLogits(const double* c) : pos_weight(T(c[0])) {}
  FO_HD explicit BceWithLogits(T weight) : pos_weight(weight) {}  // one for each element
  FO_HD Pair<T> operator()(T x, T t) const {
    const T positive = pos_weight * t, negative = T(1) - t, tail = log1p(exp_nonpositive(-abs(x)));
    return {fma(positive, max(-x, T(0)) + tail, negative * (max(x, T(0)) + tail)),
            fma(negative, sigmoid(x), -positive * sigmoid(-x))};
  }
};

// Kullback-Leibler divergence t log(t / e^x) of log-probabilities x from probabilities t; 0 log 0 is 0.
// Kullback and Leibler, On Information and Sufficiency, 1951.
template <class T>
struct KlDiv {
  static constexpr const char* name = "kl_div";
  static constexpr Names params{};
  FO_HD explicit KlDiv(const double*) {}
  FO_HD Pair<T> operator()(T x, T t) const { return {select(t == T(0), T(0), t * (log(t) - x)), -t}; }
};

// The same of log-probabilities t.
template <class T>
struct KlDivLog {
  static constexpr const char* name = "kl_div_log";
  static constexpr Names params{};
  FO_HD explicit KlDivLog(const double*) {}
  FO_HD Pair<T> operator()(T x, T t) const {
    const T p = exp(t);
    return {select(p == T(0), T(0), p * (t - x)), -p};
  }
};

// Minus the log-likelihood of a count t under a Poisson distribution of mean e^x, without what x does not
// change. McCullagh and Nelder, Generalized Linear Models, 1989, chapter 6.
template <class T>
struct PoissonNll {
  static constexpr const char* name = "poisson_nll";
  static constexpr Names params{};
  FO_HD explicit PoissonNll(const double*) {}
  FO_HD Pair<T> operator()(T x, T t) const {
    const T mean = exp(x);
    return {fma(-t, x, mean), mean - t};
  }
};

// Least where the share `quantile` of the targets lies below x; half of L1 for the median. Koenker and
// Bassett, Regression Quantiles, 1978.
template <class T>
struct Quantile {
  static constexpr const char* name = "quantile";
  static constexpr Names params{"quantile"};
  T above, below;  // what a target above or below x costs
  FO_HD explicit Quantile(const double* c) : above(T(c[0])), below(T(1.0 - c[0])) {}
  FO_HD Pair<T> operator()(T x, T t) const {
    const T d = x - t;
    return {select(d < T(0), -above * d, below * d), select(d < T(0), -above, select(d > T(0), below, T(0)))};
  }
};

// Binary cross-entropy of a logit, each part times (1 - probability of what is the case)^gamma; positives
// count alpha and negatives 1 - alpha, or both 1 where alpha is negative. Lin et al., Focal Loss for Dense
// Object Detection, ICCV 2017.
template <class T>
struct SigmoidFocal {
  static constexpr const char* name = "sigmoid_focal";
  static constexpr Names params{"alpha", "gamma"};
  T positive, negative, gamma;
  FO_HD explicit SigmoidFocal(const double* c)
      : positive(T(c[0] < 0.0 ? 1.0 : c[0])), negative(T(c[0] < 0.0 ? 1.0 : 1.0 - c[0])), gamma(T(c[1])) {}
  FO_HD Pair<T> operator()(T x, T t) const {
    const T tail = log1p(exp_nonpositive(-abs(x)));
    const T miss = max(-x, T(0)) + tail, alarm = max(x, T(0)) + tail;  // -log of sigmoid(x) and sigmoid(-x)
    const T yes = sigmoid(x), no = sigmoid(-x);
    const T ours = positive * t * exp(-gamma * alarm), others = negative * (T(1) - t) * exp(-gamma * miss);
    return {fma(ours, miss, others * alarm),
            fma(others, fma(gamma * no, alarm, yes), -ours * fma(gamma * yes, miss, no))};
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
