// A register of floats as the T of a formula, and registers of the words and bytes that steps with packed
// states store. A loop over elements that the compiler vectorises takes as many at a time as the smallest
// type has in a register: beside bytes, four registers of each of a rule's values, more than there are.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/vector.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

inline constexpr int kWide = kVectorBytes / 4, kPair = 2 * kWide;  // lanes, and those of two

// Masks of lanes, their bits, and the upper 16 bits of the lanes of two.
typedef std::int32_t WideMask __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t WideBits __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t PairWords __attribute__((vector_size(kVectorBytes)));

struct Wide {
  Vector<float> v;
  Wide() = default;
  FO_HD Wide(Vector<float> x) : v(x) {}
  FO_HD Wide(float x) : v(broadcast(x)) {}
  FO_HD explicit Wide(double x) : Wide(float(x)) {}
  FO_HD explicit Wide(int x) : Wide(float(x)) {}

  FO_HD Wide operator-() const { return -v; }
  FO_HD friend Wide operator+(Wide a, Wide b) { return a.v + b.v; }
  FO_HD friend Wide operator-(Wide a, Wide b) { return a.v - b.v; }
  FO_HD friend Wide operator*(Wide a, Wide b) { return a.v * b.v; }
  FO_HD friend Wide operator/(Wide a, Wide b) { return a.v / b.v; }
  FO_HD friend WideMask operator<(Wide a, Wide b) { return a.v < b.v; }
  FO_HD friend WideMask operator>(Wide a, Wide b) { return a.v > b.v; }
  FO_HD Wide& operator+=(Wide b) { return *this = *this + b; }
  FO_HD Wide& operator*=(Wide b) { return *this = *this * b; }
};
template <>
struct Real<Wide> : Real<float> {};

FO_HD WideBits wide_bits(Wide x) { return WideBits(x.v); }
FO_HD Wide wide_from_bits(WideBits bits) { return Vector<float>(bits); }
FO_HD Wide select(WideMask c, Wide yes, Wide no) { return c ? yes.v : no.v; }
FO_HD Wide max(Wide a, Wide b) { return select(b > a, b, a); }
FO_HD Wide abs(Wide x) { return wide_from_bits(wide_bits(x) & ~Real<float>::sign); }
FO_HD Wide fma(Wide a, Wide b, Wide c) { return fma(a.v, b.v, c.v); }
FO_HD Wide sqrt(Wide x) {
#if defined(__AVX512F__)
  return Vector<float>(_mm512_maskz_sqrt_ps(0xffff, __m512(x.v)));
#elif defined(__AVX__)
  return Vector<float>(_mm256_sqrt_ps(__m256(x.v)));
#elif defined(__x86_64__)
  return Vector<float>(_mm_sqrt_ps(__m128(x.v)));
#else
  for (int l = 0; l < kWide; ++l) x.v[l] = __builtin_sqrtf(x.v[l]);
  return x;
#endif
}

FO_HD Wide load_wide(const float* at) { return load_vector(at); }
FO_HD void store_wide(float* at, Wide x) { store_vector(at, x.v); }

// Words and bytes of kPair elements.
FO_HD PairWords load_words(const std::uint16_t* at) {
  PairWords words;
  __builtin_memcpy(&words, at, sizeof words);
  return words;
}
FO_HD void store_words(std::uint16_t* at, PairWords words) { __builtin_memcpy(at, &words, sizeof words); }

template <bool Signed>
FO_HD PairWords load_bytes(const std::uint8_t* at) {
#if defined(__AVX512BW__)
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return PairWords(Signed ? _mm512_cvtepi8_epi16(bytes) : _mm512_cvtepu8_epi16(bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return PairWords(Signed ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes));
#elif defined(__x86_64__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
  return PairWords(Signed ? _mm_cvtepi8_epi16(bytes) : _mm_cvtepu8_epi16(bytes));
#else
  PairWords words;
  for (int l = 0; l < kPair; ++l) words[l] = std::uint16_t(Signed ? std::int8_t(at[l]) : at[l]);
  return words;
#endif
}

FO_HD std::uint16_t largest_word(PairWords words) {
#if defined(__x86_64__)
  const __m128i ones = _mm_set1_epi8(-1);
#if defined(__AVX512BW__)
  const __m512i both = __m512i(words);
  const __m256i half = _mm256_max_epu16(__builtin_shufflevector(both, both, 0, 1, 2, 3),
                                        __builtin_shufflevector(both, both, 4, 5, 6, 7));
#elif defined(__AVX2__)
  const __m256i half = __m256i(words);
#endif
#if defined(__AVX2__)
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
#else
  const __m128i eight = __m128i(words);
#endif
  return std::uint16_t(~_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(eight, ones))));
#else
  std::uint16_t largest = 0;
  for (int l = 0; l < kPair; ++l) largest = words[l] > largest ? words[l] : largest;
  return largest;
#endif
}

// Two registers of words that are at most 255, as the bytes of 2 kPair elements.
FO_HD void store_bytes(std::uint8_t* at, PairWords a, PairWords b) {
#if defined(__AVX512BW__)
  const __m512i packed = _mm512_packus_epi16(__m512i(a), __m512i(b));  // 128 bits at a time
  _mm512_storeu_si512(at, __builtin_shufflevector(packed, packed, 0, 2, 4, 6, 1, 3, 5, 7));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi16(__m256i(a), __m256i(b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_permute4x64_epi64(packed, 0xd8));
#elif defined(__x86_64__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_packus_epi16(__m128i(a), __m128i(b)));
#else
  for (int l = 0; l < kPair; ++l) {
    at[l] = std::uint8_t(a[l]);
    at[l + kPair] = std::uint8_t(b[l]);
  }
#endif
}

// The upper words of the bits of two, and the floats that have words for these and zeros below: of the first
// half, or of the second.
template <int... I>
FO_HD PairWords upper_words(WideBits a, WideBits b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(PairWords(a), PairWords(b), (2 * I + 1)...);
}
FO_HD PairWords upper_words(WideBits a, WideBits b) {
  return upper_words(a, b, std::make_integer_sequence<int, kPair>());
}
template <int Half, int... I>
FO_HD Wide from_upper(PairWords words, std::integer_sequence<int, I...>) {
  return Vector<float>(
      __builtin_shufflevector(PairWords{}, words, (I % 2 ? kPair + Half * kWide + I / 2 : I)...));
}
template <int Half>
FO_HD Wide from_upper(PairWords words) {
  return from_upper<Half>(words, std::make_integer_sequence<int, kPair>());
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
