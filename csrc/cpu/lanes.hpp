// Sixteen logical lanes on every instruction set: element i belongs to lane i mod 16, and the lanes are
// merged in one fixed tree. A reduction then vectorises without any licence to reorder, and its bits depend
// neither on the width of a vector nor on the number of threads.
#pragma once

#include "cpu/loops.hpp"
#include "formulas/monoids.hpp"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <class M, class T>
FO_HD T fold(const T* lane) {
  T part[kLanes / 2];
  FO_LANES
  for (int l = 0; l < 8; ++l) part[l] = M::merge(lane[l], lane[l + 8]);
  FO_LANES
  for (int l = 0; l < 4; ++l) part[l] = M::merge(part[l], part[l + 4]);
  return M::merge(M::merge(part[0], part[2]), M::merge(part[1], part[3]));
}

// float and narrower elements are summed in double, which memory bandwidth hides.
template <template <class> class M_>
class Lanes {
 public:
  using M = M_<double>;

  // One stream of at most kLaneBlock elements, or two side by side for Dot.
  template <class... S>
  FO_HD void push(Index n, const S*... x) {
    double lane[kLanes];
    for (int l = 0; l < kLanes; ++l) lane[l] = M::identity;
    Index i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      FO_LANES
      for (int l = 0; l < kLanes; ++l) lane[l] = M::push(lane[l], double(load(x[i + l]))...);
    }
    for (int l = 0; i + l < n; ++l) lane[l] = M::push(lane[l], double(load(x[i + l]))...);
    total_ = M::merge(total_, fold<M>(lane));
  }

  // Any number of elements.
  template <class... S>
  FO_HD void push_all(Index n, const S*... x) {
    for (Index i = 0; i < n; i += kLaneBlock) push(n - i < kLaneBlock ? n - i : kLaneBlock, x + i...);
  }

  FO_HD double value() const { return total_; }

 private:
  double total_ = M::identity;
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
