// Names: the fixed list of words (parameters, states, coefficients) that a formula declares about itself.
// Formulas<...>: a type list of formulas; its order is the formula's index in every kernel table.
#pragma once

namespace fastopt {
inline namespace FASTOPT_ISA {

struct Names {
  static constexpr int kMax = 8;
  const char* at[kMax] = {};
  int size = 0;
  constexpr Names() = default;
  template <class... Word>
  constexpr explicit Names(Word... words) : at{words...}, size(int(sizeof...(Word))) {}

  constexpr bool has(const char* name) const {
    for (int i = 0; i < size; ++i) {
      const char *a = at[i], *b = name;
      while (*a && *a == *b) ++a, ++b;
      if (*a == *b) return true;
    }
    return false;
  }
};

template <template <class> class... F>
struct Formulas {
  static constexpr int size = int(sizeof...(F));
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
