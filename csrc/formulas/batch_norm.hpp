// Batch normalisation: the moments of a channel, what is kept of them, a normalised number and its gradient.
// Ioffe and Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
// Shift, 2015.
#pragma once

#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// How many numbers there are, their mean, and the sum of their squared deviations from it. Chan, Golub and
// LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
struct Moments {
  double n, mean, m2;

  // Of n > 0 numbers, by the sums of their differences from `shift` and of the squares of those. With one of
  // the numbers as shift no more than a factor n + 1 of the sums' rounding error is left in m2.
  FO_HD static Moments of(double n, double shift, double sum, double squares) {
    const double mean = sum / n, m2 = squares - sum * mean;
    // Squares of finite numbers that overflow are an infinite variance, not a difference of infinities.
    const bool overflows = mean - mean == 0.0 && squares - squares != 0.0;
    return {n, shift + mean, select(overflows, squares, select(m2 < 0.0, 0.0, m2))};
  }
  FO_HD static Moments merge(const Moments& a, const Moments& b) {
    if (b.n == 0.0) return a;
    const double n = a.n + b.n, share = b.n / n, apart = b.mean - a.mean;
    return {n, a.mean + apart * share, a.m2 + b.m2 + apart * apart * (a.n * share)};
  }
};

FO_HD double reciprocal_std(double var, double eps) { return 1.0 / sqrt(var + eps); }

// What is kept of a batch: `var` is the unbiased estimate, for the running one.
struct BatchStatistics {
  double mean, rstd, var;
  FO_HD BatchStatistics(const Moments& m, double eps)
      : mean(m.mean), rstd(reciprocal_std(m.m2 / m.n, eps)), var(m.m2 / (m.n - 1.0)) {}
};

// A running statistic after a batch.
template <class T>
FO_HD T tracked(T running, T batch, double momentum) {
  return T(momentum * double(batch) + (1.0 - momentum) * double(running));
}
// How much a batch counts in it: the same always, or with a negative momentum all batches alike.
FO_HD double batch_share(double momentum, double batches) {
  return momentum < 0.0 ? 1.0 / batches : momentum;
}

// scale = rstd weight, shift = bias.
template <class T>
FO_HD T normalized(T x, T mean, T scale, T shift) {
  return fma(x - mean, scale, shift);
}

// The sums of dy and of dy (x - mean) over a channel.
struct GradSums {
  double dy, dot;
  FO_HD static GradSums merge(const GradSums& a, const GradSums& b) { return {a.dy + b.dy, a.dot + b.dot}; }
};

// What the gradient of a channel subtracts from dy: `center`, and (x - mean) `slope`.
struct GradTerms {
  double dweight, dbias, center, slope;
  FO_HD GradTerms(const GradSums& sums, double n, double rstd)
      : dweight(sums.dot * rstd), dbias(sums.dy), center(sums.dy / n), slope(sums.dot * rstd * rstd / n) {}
};
template <class T>
FO_HD T normalized_grad(T dy, T x, T mean, T center, T slope, T scale) {
  return scale * fma(mean - x, slope, dy - center);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
