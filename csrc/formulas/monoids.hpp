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

}  // namespace FASTOPT_ISA
}  // namespace fastopt
