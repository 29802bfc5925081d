// Packing: blocks of an operand copied into panels that the register tiles read from end to end.
#pragma once

#include "core/array.hpp"
#include "cpu/vector.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// n steps of `lanes` lanes, a step's lanes side by side in a panel `width` wide: packed[step width + lane].
// Lanes from `lanes` on are filled with zeros.
template <class T>
static void pack_panel(const T* x, Index lane_stride, Index step_stride, Index lanes, Index n, Index width,
                       T* packed) {
  constexpr int S = Simd<T>::quarter;
  using Short = typename Simd<T>::Short;
  using Unaligned = typename Simd<T>::ShortUnaligned;
  if (lanes < width)
    for (Index i = 0; i < n; ++i)
      for (Index l = lanes; l < width; ++l) packed[i * width + l] = T(0);
  const Index whole_lanes = lanes / S * S;
  if (step_stride == 1) {
    // A cache line of every lane at a time, and those after the next three on their way.
    constexpr Index kLine = 64 / Index(sizeof(T)), kAhead = 4 * kLine;
    for (Index begin = 0; begin < n; begin += kLine) {
      const Index end = n - begin < kLine ? n : begin + kLine, whole = begin + (end - begin) / S * S;
      for (Index l = 0; l < whole_lanes; l += S) {
        const T* from = x + l * lane_stride;
        for (int r = 0; r < S; ++r) __builtin_prefetch(from + r * lane_stride + begin + kAhead);
        for (Index i = begin; i < whole; i += S) {
          Short block[S];
          for (int r = 0; r < S; ++r)
            block[r] = *reinterpret_cast<const Unaligned*>(from + r * lane_stride + i);
          transpose(block);
          for (int r = 0; r < S; ++r) *reinterpret_cast<Unaligned*>(packed + (i + r) * width + l) = block[r];
        }
        for (Index i = whole; i < end; ++i)
          for (int r = 0; r < S; ++r) packed[i * width + l + r] = from[r * lane_stride + i];
      }
      for (Index l = whole_lanes; l < lanes; ++l)
        for (Index i = begin; i < end; ++i) packed[i * width + l] = x[l * lane_stride + i];
    }
  } else if (lane_stride == 1) {
    for (Index i = 0; i < n; ++i) {
      const T* from = x + i * step_stride;
      for (Index l = 0; l < whole_lanes; l += S)
        *reinterpret_cast<Unaligned*>(packed + i * width + l) = *reinterpret_cast<const Unaligned*>(from + l);
      for (Index l = whole_lanes; l < lanes; ++l) packed[i * width + l] = from[l];
    }
  } else {
    for (Index i = 0; i < n; ++i)
      for (Index l = 0; l < lanes; ++l) packed[i * width + l] = x[l * lane_stride + i * step_stride];
  }
}

// Several whole panels of `Width` lanes, of lanes that lie side by side: long runs of memory are read at
// once, which keeps the prefetcher and the TLB busy with few pages. Panels are panel_size apart.
template <class T, Index Width>
static void pack_panels(const T* x, Index step_stride, Index panels, Index n, Index panel_size, T* packed) {
  constexpr Index W = Simd<T>::size, kLine = 64 / Index(sizeof(T)), kAhead = 8;
  for (Index i = 0; i < n; ++i) {
    const T* from = x + i * step_stride;
    for (Index l = 0; l < panels * Width; l += kLine) __builtin_prefetch(from + kAhead * step_stride + l);
    for (Index panel = 0; panel < panels; ++panel)
      for (Index l = 0; l < Width; l += W)
        store_vector(packed + panel * panel_size + i * Width + l, load_vector(from + panel * Width + l));
  }
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
