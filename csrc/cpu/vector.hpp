// Vector registers of the instruction set, over GCC's vector types: what the gemm driver is written in.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

// The four (of double: two) short vectors of a square block become its columns.
FO_HD void transpose(Simd<float>::Short (&r)[4]) {
  using S = Simd<float>::Short;
  const S a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5),
          b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const S c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5),
          d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
FO_HD void transpose(Simd<double>::Short (&r)[2]) {
  const Simd<double>::Short a = r[0], b = r[1];
  r[0] = __builtin_shufflevector(a, b, 0, 2);
  r[1] = __builtin_shufflevector(a, b, 1, 3);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
