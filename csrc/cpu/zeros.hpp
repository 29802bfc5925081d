// Steps of k that a product of finite elements may leave out, because a few rows or columns of an operand are
// zero there: four of five pixels of a digit are, and encoded words and categories are hardly anything else.
#pragma once

#include <cstdint>

#include "core/array.hpp"
#include "cpu/tile.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// Counting them must cost less than what it may save.
inline constexpr bool kFindsZeros = kVectorBytes >= 32;
// Rows of A, and columns of B, that share a list. Lanes of B are looked at 64 bytes at a time.
inline constexpr int kListedRows = 2, kListedColumns = 4;
template <class T>
inline constexpr int kZeroLanes = 64 / int(sizeof(T));
template <class T>
inline constexpr int kZeroLists = kZeroLanes<T> / kListedColumns;
inline constexpr unsigned kList = (1u << kListedColumns) - 1;  // the lanes of the first
inline constexpr int kMaskSteps = 32;                          // whose lanes are looked at together
// Leaving out fewer steps is not worth the look.
FO_HD bool worth_leaving_out(Index left, Index steps) { return 5 * left <= 3 * steps; }

using Step = std::uint16_t;

// Of either sign: a term of zero changes no sum but one of -0, which a tile makes +0 at its end.
template <class T>
inline constexpr Bits<T> kUnsigned = ~Bits<T>(0) >> 1;

// A bit for each lane of words that is not zero.
template <class T>
FO_HD unsigned nonzero_words(typename Simd<T>::Words words) {
#if defined(__AVX512F__)
  const __m512i rest = __m512i(kUnsigned<T> - typename Simd<T>::Words{});
  if constexpr (sizeof(T) == 4) return _mm512_test_epi32_mask(__m512i(words), rest);
  return _mm512_test_epi64_mask(__m512i(words), rest);
#else
  unsigned mask = 0;
  for (int l = 0; l < Simd<T>::size; ++l) mask |= unsigned((words[l] & kUnsigned<T>) != 0) << l;
  return mask;
#endif
}

// A bit for each of the kZeroLanes at x that is not zero.
template <class T>
FO_HD unsigned nonzero_lanes(const T* x) {
  constexpr int W = Simd<T>::size;
  unsigned mask = 0;
  for (int l = 0; l < kZeroLanes<T>; l += W)
    mask |= nonzero_words<T>(typename Simd<T>::Words(load_vector(x + l))) << l;
  return mask;
}

// Appends the steps from `first` on whose bit is set, of `Most`; writes up to 16 whatever is left of them.
template <int Most>
FO_HD Index append_set(unsigned mask, Index first, Step* steps) {
#if defined(__AVX512F__)
  const __m512i all = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                       _mm512_set1_epi32(int(first)));
  const __m256i left =
      _mm512_maskz_cvtepi32_epi16(__mmask16(-1), _mm512_maskz_compress_epi32(__mmask16(mask), all));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(steps), left);
  return __builtin_popcount(mask);
#else
  Index count = 0;
  for (int j = 0; j < Most; ++j) {
    steps[count] = Step(first + j);
    count += mask >> j & 1;
  }
  return count;
#endif
}

// The masks of nonzero_lanes of up to 32 steps, of which a list has some of the lanes: a bit for each step
// where one of these is not zero.
FO_HD unsigned steps_with(const std::uint16_t* masks, unsigned lanes) {
#if defined(__AVX512BW__)
  return _mm512_test_epi16_mask(_mm512_loadu_si512(masks), _mm512_set1_epi16(short(lanes)));
#else
  unsigned steps = 0;
  for (int i = 0; i < kMaskSteps; ++i) steps |= unsigned((masks[i] & lanes) != 0) << i;
  return steps;
#endif
}

// The steps of n where any lane of a list is not zero, for each of kZeroLists lists that are `room` apart:
// n and 15 more.
template <class T>
static void steps_of_lanes(const T* x, Index step_stride, Index n, Index room, Step* steps, Index* counts) {
  for (int l = 0; l < kZeroLists<T>; ++l) counts[l] = 0;
  for (Index i = 0; i < n; i += kMaskSteps) {
    std::uint16_t masks[kMaskSteps] = {};
    const Index some = n - i < kMaskSteps ? n - i : kMaskSteps;
    for (Index s = 0; s < some; ++s) masks[s] = std::uint16_t(nonzero_lanes(x + (i + s) * step_stride));
    FO_UNROLL
    for (int l = 0; l < kZeroLists<T>; ++l) {
      const unsigned left = steps_with(masks, kList << l * kListedColumns);
      Step* const to = steps + l * room;
      counts[l] += append_set<16>(left & 0xffff, i, to + counts[l]);
      if (some > 16) counts[l] += append_set<16>(left >> 16, i + 16, to + counts[l]);
    }
  }
}

// Appends the steps from `first` on whose word is not zero; writes up to 16, as append_set does.
template <class T>
FO_HD Index append_steps(typename Simd<T>::Words words, Index first, Step* steps) {
  return append_set<Simd<T>::size>(nonzero_words<T>(words), first, steps);
}

// The same of lanes of which each is read along its memory. Room for 16 more is needed.
template <class T>
static Index steps_of_rows(const T* x, Index lane_stride, Index lanes, Index n, Step* steps) {
  constexpr int W = Simd<T>::size;
  Index count = 0, i = 0;
  for (; i + W <= n; i += W) {
    typename Simd<T>::Words bits{};
    for (Index l = 0; l < lanes; ++l) bits |= typename Simd<T>::Words(load_vector(x + l * lane_stride + i));
    count += append_steps<T>(bits, i, steps + count);
  }
  for (; i < n; ++i) {
    Bits<T> bits = 0;
    for (Index l = 0; l < lanes; ++l) bits |= to_bits(x[l * lane_stride + i]);
    steps[count] = Step(i);
    count += (bits & kUnsigned<T>) != 0;
  }
  return count;
}

// Room for the length of a list of so many steps, the steps, and 15 more: they are written sixteen at a time.
FO_HD Index list_room(Index depth) { return depth + 16; }

// The sums of a tile over the listed steps of k. Every two vectors of a step of B are b_pair apart, and one
// lies b_vector behind the other.
template <class T, int Rows, int Vectors>
FO_HD void add_steps(const Step* steps, Index count, const T* a_, Index a_row, Index a_step, const T* b_,
                     Index b_step, Index b_vector, Index b_pair, Vector<T> (&sum)[Rows][Vectors]) {
  FO_UNROLL
  for (int i = 0; i < Rows; ++i) {
    FO_UNROLL
    for (int j = 0; j < Vectors; ++j) sum[i][j] = Vector<T>{};
  }
  for (Index n = 0; n < count; ++n) {
    const Index step = steps[n];
    const T *const a = a_ + step * a_step, *const b = b_ + step * b_step;
    Vector<T> x[Rows];
    FO_UNROLL
    for (int i = 0; i < Rows; ++i) x[i] = broadcast(a[i * a_row]);
    FO_UNROLL
    for (int j = 0; j < Vectors; ++j) {
      const Vector<T> y = load_vector(b + j / 2 * b_pair + j % 2 * b_vector);
      FO_UNROLL
      for (int i = 0; i < Rows; ++i) sum[i][j] = fma(x[i], y, sum[i][j]);
    }
  }
}

// Whether rows of elements side by side are finite: what is not has a product with zero that is not zero.
template <class T>
static bool all_finite(const T* x, Index row_stride, Index rows, Index n) {
  constexpr int W = Simd<T>::size, kTogether = 4;  // sums that do not wait for one another
  Vector<T> sum[kTogether] = {};
  T rest = 0;
  for (Index r = 0; r < rows; ++r) {
    const T* const row = x + r * row_stride;
    Index i = 0;
    for (; i + kTogether * W <= n; i += kTogether * W)
      for (int j = 0; j < kTogether; ++j) sum[j] = fma(load_vector(row + i + j * W), Vector<T>{}, sum[j]);
    for (; i + W <= n; i += W) sum[0] = fma(load_vector(row + i), Vector<T>{}, sum[0]);
    for (; i < n; ++i) rest += row[i] * T(0);
  }
  const Vector<T> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  for (int l = 0; l < W; ++l) rest += all[l];
  return rest == T(0);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
