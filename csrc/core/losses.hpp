// What callers of the loss kernels need to know of a batch's classes.
#pragma once

#include "core/array.hpp"
#include "math.hpp"

namespace fastopt {

FO_HD bool is_bad_class(Index c, Index columns, Index ignore_index) {
  return c != ignore_index && (c < 0 || c >= columns);
}

// What the input of a loss of probabilities has to be; a NaN is none.
template <class T>
FO_HD bool is_probability(T x) {
  return x >= 0 && x <= 1;
}

// The first of n classes that is neither ignored nor in [0, columns); n where there is none.
inline Index first_bad_class(const Index* target, Index n, Index columns, Index ignore_index) {
  for (Index i = 0; i < n; ++i)
    if (is_bad_class(target[i], columns, ignore_index)) return i;
  return n;
}

// The summed weights of the classes that are not ignored: what a mean over them divides by. Without weights
// each counts 1.
template <class T>
double used_weight(const Index* target, Index n, const T* weight, Index ignore_index) {
  double used = 0.0;
  for (Index i = 0; i < n; ++i)
    if (target[i] != ignore_index) used += weight ? double(weight[target[i]]) : 1.0;
  return used;
}
inline double used_weight(DType dtype, const Index* target, Index n, const void* weight, Index ignore_index) {
  return dtype == DType::f32 ? used_weight(target, n, static_cast<const float*>(weight), ignore_index)
                             : used_weight(target, n, static_cast<const double*>(weight), ignore_index);
}

}  // namespace fastopt
