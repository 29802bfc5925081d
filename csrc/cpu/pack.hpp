// Packing: blocks of an operand copied into panels that the register tiles read from end to end.
#pragma once

#include "core/array.hpp"
#include "cpu/vector.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// Steps [begin, end) of as many lanes as a square block of `Shorts` short vectors has, which are read along
// their memory.
template <class T, int Shorts>
static void pack_lanes(const T* x, Index lane_stride, Index begin, Index end, Index width, T* packed) {
  constexpr int S = Simd<T>::quarter;
  Index i = begin;
  for (; i + S <= end; i += S) {
    typename Row<T, Shorts>::Vector block[S];
    for (int r = 0; r < S; ++r) block[r] = load_row<T, Shorts>(x + r * lane_stride + i, S * lane_stride);
    transpose(block);
    for (int r = 0; r < S; ++r)
      *reinterpret_cast<typename Row<T, Shorts>::Unaligned*>(packed + (i + r) * width) = block[r];
  }
  for (; i < end; ++i)
    for (int l = 0; l < S * Shorts; ++l) packed[i * width + l] = x[l * lane_stride + i];
}

// packed[step width + lane] = lane's element of a step, of lanes that are read along their memory.
template <class T>
static void transpose(const T* x, Index lane_stride, Index lanes, Index n, Index width, T* packed) {
  // Runs of 512 bytes of a few lanes, and then the next ones' over the same lines of the panel.
  constexpr Index S = Simd<T>::quarter, kRun = 512 / Index(sizeof(T)), kTogether = S * kMostShorts;
  for (Index begin = 0; begin < n; begin += kRun) {
    const Index end = n - begin < kRun ? n : begin + kRun;
    Index l = 0;
    for (; l + kTogether <= lanes; l += kTogether)
      pack_lanes<T, kMostShorts>(x + l * lane_stride, lane_stride, begin, end, width, packed + l);
    for (; l + S <= lanes; l += S)
      pack_lanes<T, 1>(x + l * lane_stride, lane_stride, begin, end, width, packed + l);
    for (; l < lanes; ++l)
      for (Index i = begin; i < end; ++i) packed[i * width + l] = x[l * lane_stride + i];
  }
}

// n steps of `lanes` lanes, a step's lanes side by side in a panel `width` wide: packed[step width + lane].
// Lanes from `lanes` on are filled with zeros.
template <class T>
static void pack_panel(const T* x, Index lane_stride, Index step_stride, Index lanes, Index n, Index width,
                       T* packed) {
  constexpr int S = Simd<T>::quarter;
  if (lanes < width)
    for (Index i = 0; i < n; ++i)
      for (Index l = lanes; l < width; ++l) packed[i * width + l] = T(0);
  if (step_stride == 1) {
    transpose(x, lane_stride, lanes, n, width, packed);
  } else if (lane_stride == 1) {
    using Short = typename Simd<T>::ShortUnaligned;
    constexpr Index W = Simd<T>::size;
    const Index whole_lanes = lanes / S * S;
    for (Index i = 0; i < n; ++i) {
      const T* from = x + i * step_stride;
      Index l = 0;
      for (; l + W <= lanes; l += W) store_vector(packed + i * width + l, load_vector(from + l));
      for (; l < whole_lanes; l += S)
        *reinterpret_cast<Short*>(packed + i * width + l) = *reinterpret_cast<const Short*>(from + l);
      for (; l < lanes; ++l) packed[i * width + l] = from[l];
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
