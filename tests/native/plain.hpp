// An optimizer's step on one element, in double: the driver's part written out, the rule from its formula.
#pragma once

#include "formulas/registry.hpp"
#include "native.hpp"

namespace fastopt::test {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Element {
  double p, state[4], ema;
};

// Coefficients as the kernels take them: what all rules share, then the rule's own.
template <template <class> class Rule>
std::vector<double> coefficients(bool bounded) {
  std::vector<double> c = {0.5, bounded ? 0.1 : kInfinity, bounded ? 0.01 : 0.0, 0.02, 0.05, 0.99, 0.9, 3.0};
  constexpr Names kNames = Rule<double>::coefs;
  for (int i = 0; i < kNames.size; ++i) c.push_back(std::strcmp(kNames.at[i], "eps") == 0 ? 0.01 : 0.6);
  return c;
}

template <template <class> class Rule>
void plain_step(const std::vector<double>& c, double g, Element& e) {
  g = std::fmax(std::fmin(g * c[0], c[kClipValue]), -c[kClipValue]);
  g += c[3] * e.p + c[kL1] * double((e.p > 0) - (e.p < 0));
  const double u = Rule<double>(c.data() + kCommonCoefs)(g, e.p, e.state);
  e.p = c[5] * e.p - c[4] * u;
  e.ema += (1 - c[6]) * (e.p - e.ema);
}

template <template <class> class Rule, template <class> class... All>
constexpr int index_of(Formulas<All...>) {
  int index = 0;
  (void)((std::is_same_v<Rule<double>, All<double>> || (++index, false)) || ...);
  return index;
}

}  // namespace fastopt::test
