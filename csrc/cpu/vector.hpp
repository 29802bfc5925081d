// Vector registers of the instruction set, over GCC's vector types: what the gemm driver is written in.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>

#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64, kVectorRegisters = 32;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32, kVectorRegisters = 16;
#elif defined(__aarch64__)
inline constexpr int kVectorBytes = 16, kVectorRegisters = 32;
#else
inline constexpr int kVectorBytes = 16, kVectorRegisters = 16;
#endif

// A whole register, 16 bytes of one, and either where memory is not aligned to it.
template <class T>
struct Simd {
  static constexpr int size = kVectorBytes / int(sizeof(T)), quarter = 16 / int(sizeof(T));
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  typedef Bits<T> Words __attribute__((vector_size(kVectorBytes)));
  typedef T Short __attribute__((vector_size(16)));
  typedef T ShortUnaligned __attribute__((vector_size(16), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename Simd<T>::Vector;

template <class T>
FO_HD Vector<T> load_vector(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}
template <class T>
FO_HD void store_vector(T* p, Vector<T> v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}
template <class T>
FO_HD Vector<T> broadcast(T x) {
  return Vector<T>(to_bits(x) - typename Simd<T>::Words{});  // in integers, which keep the bits of a NaN
}

// As many elements as a vector of double has.
FO_HD Vector<double> load_doubles(const double* p) { return load_vector(p); }
FO_HD Vector<double> load_doubles(const float* p) {
#if defined(__AVX512F__)
  return Vector<double>(_mm512_maskz_cvtps_pd(__mmask8(-1), _mm256_loadu_ps(p)));
#elif defined(__AVX__)
  return Vector<double>(_mm256_cvtps_pd(_mm_loadu_ps(p)));
#else
  return Vector<double>{double(p[0]), double(p[1])};
#endif
}

// a b + c, with one rounding where the level has it.
#if defined(__AVX512F__)
FO_HD Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
  return Vector<float>(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
}
FO_HD Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
  return Vector<double>(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
}
#elif defined(__FMA__)
FO_HD Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
  return Vector<float>(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}
FO_HD Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
  return Vector<double>(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
}
#elif defined(__aarch64__)
FO_HD Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
  for (int l = 0; l < 4; ++l) c[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return c;
}
FO_HD Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
  for (int l = 0; l < 2; ++l) c[l] = __builtin_fma(a[l], b[l], c[l]);
  return c;
}
#else
FO_HD Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) { return a * b + c; }
FO_HD Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) { return a * b + c; }
#endif

// One short vector, or two side by side.
template <class T, int Shorts>
struct Row {
  typedef T Vector __attribute__((vector_size(16 * Shorts)));
  typedef T Unaligned __attribute__((vector_size(16 * Shorts), aligned(alignof(T)), may_alias));
};
inline constexpr int kMostShorts = kVectorBytes > 16 ? 2 : 1;

// The short vector at p, and the one `apart` elements on where there are two.
template <class T, int Shorts>
FO_HD typename Row<T, Shorts>::Vector load_row(const T* p, std::ptrdiff_t apart) {
  using Unaligned = typename Simd<T>::ShortUnaligned;
  const typename Simd<T>::Short a = *reinterpret_cast<const Unaligned*>(p);
  if constexpr (Shorts == 1) {
    return a;
  } else {
    const typename Simd<T>::Short b = *reinterpret_cast<const Unaligned*>(p + apart);
    if constexpr (sizeof(T) == 4) {
      return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
    } else {
      return __builtin_shufflevector(a, b, 0, 1, 2, 3);
    }
  }
}

// The four (of double: two) rows of a square block become its columns; of short vectors side by side each is
// a block of its own.
FO_HD void transpose(Row<float, 1>::Vector (&r)[4]) {
  using V = Row<float, 1>::Vector;
  const V a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5),
          b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7),
          c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5),
          d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
FO_HD void transpose(Row<double, 1>::Vector (&r)[2]) {
  const Row<double, 1>::Vector a = r[0], b = r[1];
  r[0] = __builtin_shufflevector(a, b, 0, 2);
  r[1] = __builtin_shufflevector(a, b, 1, 3);
}
#if defined(__AVX__)
FO_HD void transpose(Row<float, 2>::Vector (&r)[4]) {
  using V = Row<float, 2>::Vector;
  const V a = __builtin_shufflevector(r[0], r[1], 0, 8, 1, 9, 4, 12, 5, 13),
          b = __builtin_shufflevector(r[0], r[1], 2, 10, 3, 11, 6, 14, 7, 15),
          c = __builtin_shufflevector(r[2], r[3], 0, 8, 1, 9, 4, 12, 5, 13),
          d = __builtin_shufflevector(r[2], r[3], 2, 10, 3, 11, 6, 14, 7, 15);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
  r[1] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
  r[2] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
}
FO_HD void transpose(Row<double, 2>::Vector (&r)[2]) {
  const Row<double, 2>::Vector a = r[0], b = r[1];
  r[0] = __builtin_shufflevector(a, b, 0, 4, 2, 6);
  r[1] = __builtin_shufflevector(a, b, 1, 5, 3, 7);
}
#endif

}  // namespace FASTOPT_ISA
}  // namespace fastopt
