// Monoids of the reductions: push takes one more element in, merge joins two parts. A NaN stays a NaN.
#pragma once

#include "core/array.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// Element i of a block belongs to lane i mod 16, on every device.
inline constexpr int kLanes = 16;
// Elements that one set of lanes takes in before it is merged into the total: rounding errors then grow with
// the 32 additions of a lane, and with one more for each block.
inline constexpr Index kLaneBlock = 512;

template <class T>
struct Sum {
  static constexpr T identity = T(0);
  FO_HD static T push(T part, T x) { return part + x; }
  FO_HD static T merge(T a, T b) { return a + b; }
};

template <class T>
struct AbsSum : Sum<T> {
  FO_HD static T push(T part, T x) { return part + abs(x); }
};

template <class T>
struct SumSquares : Sum<T> {
  FO_HD static T push(T part, T x) { return fma(x, x, part); }
};

template <class T>
struct Dot : Sum<T> {
  FO_HD static T push(T part, T x, T y) { return fma(x, y, part); }
};

template <class T>
struct Max {
  static constexpr T identity = -T(__builtin_huge_val());
  FO_HD static T merge(T a, T b) { return select((b > a) | (b != b), b, a); }
  FO_HD static T push(T part, T x) { return merge(part, x); }
};

template <class T>
struct AbsMax : Max<T> {
  static constexpr T identity = T(0);
  FO_HD static T push(T part, T x) { return Max<T>::merge(part, abs(x)); }
};

// The largest of some numbers and the sum of exp(x - top), in one pass over them. Milakov and Gimelshein,
// Online normalizer calculation for softmax, 2018.
template <class T>
struct OnlineSoftmax {
  T top = Max<T>::identity, sum = T(0);

  // What is subtracted from numbers: of -inf alone no difference would be a number.
  FO_HD T shift() const { return select(top == Max<T>::identity, T(0), top); }
  // Makes top at least `to`; returns by how much what is subtracted has risen.
  FO_HD double raise(T to) {
    if (!(to > top)) return 0.0;
    const bool first = top == Max<T>::identity;
    const double risen = first ? 0.0 : double(to) - double(top);
    sum *= first ? T(0) : exp_term(top - to);
    top = to;
    return risen;
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
