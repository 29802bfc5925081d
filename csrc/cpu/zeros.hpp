// Steps of k that a product of finite elements may leave out, because an operand is zero there for a whole
// tile: images have empty edges, and encoded words and categories are hardly anything else.
#pragma once

#include <cstdint>

#include "core/array.hpp"
#include "cpu/vector.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// Counting them must cost less than what it may save.
inline constexpr bool kFindsZeros = kVectorBytes >= 32;
// Lanes that are looked at together: as many on each instruction set that does it.
template <class T>
inline constexpr int kZeroLanes = 64 / int(sizeof(T));
template <class T>
inline constexpr int kZeroVectors = kZeroLanes<T> / Simd<T>::size;
// Leaving out fewer steps is not worth the look.
FO_HD bool worth_leaving_out(Index left, Index steps) { return 4 * left <= 3 * steps; }

using Step = std::uint16_t;

template <class T>
FO_HD bool any_of_lanes(const T* x) {
#if defined(__AVX512F__)
  const __m512i bits = __m512i(load_vector(x));
  return _mm512_test_epi32_mask(bits, bits) != 0;
#elif defined(__AVX__)
  const __m256i bits = __m256i(load_vector(x)) | __m256i(load_vector(x + Simd<T>::size));
  return !_mm256_testz_si256(bits, bits);
#else
  Bits<T> bits = 0;
  for (int l = 0; l < kZeroLanes<T>; ++l) bits |= to_bits(x[l]);
  return bits != 0;
#endif
}

// The steps of n where any of the lanes that lie side by side is not zero.
template <class T>
static Index steps_of_lanes(const T* x, Index step_stride, Index n, Step* steps) {
  Index count = 0;
  for (Index i = 0; i < n; ++i) {
    steps[count] = Step(i);
    count += any_of_lanes(x + i * step_stride);
  }
  return count;
}

// Appends the steps from `first` on whose word is not zero.
template <class T>
FO_HD Index append_steps(typename Simd<T>::Words words, Index first, Step* steps) {
  constexpr int W = Simd<T>::size;
#if defined(__AVX512F__)
  unsigned mask;
  if constexpr (W == 16) {
    mask = _mm512_test_epi32_mask(__m512i(words), __m512i(words));
  } else {
    mask = _mm512_test_epi64_mask(__m512i(words), __m512i(words));
  }
  const __m512i all = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                       _mm512_set1_epi32(int(first)));
  const __m256i left =
      _mm512_maskz_cvtepi32_epi16(__mmask16(-1), _mm512_maskz_compress_epi32(__mmask16(mask), all));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(steps), left);
  return __builtin_popcount(mask);
#else
  Index count = 0;
  for (int j = 0; j < W; ++j) {
    steps[count] = Step(first + j);
    count += words[j] != 0;
  }
  return count;
#endif
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
    count += bits != 0;
  }
  return count;
}

// Whether rows of elements side by side are finite: what is not has a product with zero that is not zero.
template <class T>
static bool all_finite(const T* x, Index row_stride, Index rows, Index n) {
  constexpr int W = Simd<T>::size;
  Vector<T> sum{};
  T rest = 0;
  for (Index r = 0; r < rows; ++r) {
    const T* const row = x + r * row_stride;
    Index i = 0;
    for (; i + W <= n; i += W) sum = fma(load_vector(row + i), Vector<T>{}, sum);
    for (; i < n; ++i) rest += row[i] * T(0);
  }
  for (int l = 0; l < W; ++l) rest += sum[l];
  return rest == T(0);
}

// Which operand is zero for whole tiles: A for rows of one, or B for columns of one.
enum class Zeros : std::uint8_t { none, rows, columns };
inline constexpr Index kMostTiles = 64;  // of a block of rows

// The steps of a block of k that are left: of each tile of rows, or of the columns at hand.
struct ZeroSteps {
  Zeros of = Zeros::none;
  Index depth = 0;
  Step *steps = nullptr, *counts = nullptr;

  Step* of_tile(Index tile) const { return steps + tile * depth; }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
