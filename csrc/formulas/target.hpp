// What cross-entropy compares a row with, weights and smoothing included, as a distribution q over the
// classes: the loss is -sum(q log p), its derivative sum(q) p - q. q is on_label at one class, plus, where it
// is spread, a part for every class. Szegedy et al., Rethinking the Inception Architecture (label smoothing),
// CVPR 2016.
#pragma once

#include "core/dispatch.hpp"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class S>
struct Target {
  using T = Compute<S>;
  Index columns;
  const S *probabilities, *weight;  // of each class; null: no given distribution, no weights
  T keep, smooth;                   // what smoothing leaves of the given distribution, and adds to each class
  Index label = -1;                 // none for probabilities, and of an ignored or impossible class
  T on_label = T(0);                // NaN of an impossible class, which CPU kernels are never given
  bool ignored = false;

  Target() = default;
  FO_HD Target(const CrossEntropyArgs& args, Index row)
      : columns(args.columns),
        probabilities(static_cast<const S*>(args.probabilities)),
        weight(static_cast<const S*>(args.weight)),
        keep(T(1.0 - args.label_smoothing)),
        smooth(T(args.label_smoothing / double(args.columns))) {
    if (probabilities) {
      probabilities += row * columns;
      return;
    }
    label = args.target[row];
    ignored = label == args.ignore_index;
    const bool possible = label >= 0 && label < columns;
    if (ignored || !possible) {
      label = -1;
      if (!ignored) on_label = from_bits<T>(Real<T>::nan);
      return;
    }
    on_label = weight ? keep * load(weight[label]) : keep;
  }

  FO_HD bool spread() const { return probabilities || smooth != T(0); }

  // The spread part of q for a class of this probability, before its weight.
  FO_HD T smoothed(T probability) const { return fma(keep, probability, smooth); }

  // The loss of q's sum and of sum(q (x - top)), where log_sum is that of exp(x - top).
  FO_HD double loss(double mass, double dot, T log_sum) const {
    return ignored ? 0.0 : mass * double(log_sum) - dot;
  }

  // Takes the label's part, or a spread part q, from scale sum(q) p. The former is rounded as in the factor
  // of p: a sure row gets an exact 0.
  FO_HD T without_label(T scale, T grad) const { return grad - scale * on_label; }
  FO_HD static T without_spread(T scale, T q, T grad) { return fma(-scale, q, grad); }
};

// One element of sum(q (x - top)). Where q is 0 a logit of -inf costs nothing.
template <class T>
FO_HD T centred(T q, T x, T top) {
  return select(q == T(0), T(0), x - top);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
