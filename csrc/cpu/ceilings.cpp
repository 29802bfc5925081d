// What the machine can do at best, for benchmarks to compare with: a copy past the caches, and fused
// multiply-adds that never leave the registers.
#include "core/dispatch.hpp"
#include "cpu/table.hpp"
#include "math.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// Vectors written out: GCC neither chooses non-temporal stores nor keeps an array of sums in registers.
#if defined(__AVX512F__)
using Vector = __m512;
FO_HD Vector spread(float v) { return _mm512_set1_ps(v); }
FO_HD Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
FO_HD void stream(float* y, const float* x) { _mm512_stream_ps(y, _mm512_loadu_ps(x)); }
#elif defined(__FMA__)
using Vector = __m256;
FO_HD Vector spread(float v) { return _mm256_set1_ps(v); }
FO_HD Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
FO_HD void stream(float* y, const float* x) { _mm256_stream_ps(y, _mm256_loadu_ps(x)); }
#elif defined(__x86_64__)
using Vector = __m128;
FO_HD Vector spread(float v) { return _mm_set1_ps(v); }
FO_HD Vector multiply_add(Vector a, Vector b, Vector c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
FO_HD void stream(float* y, const float* x) { _mm_stream_ps(y, _mm_loadu_ps(x)); }
#else
using Vector = float __attribute__((vector_size(16)));
FO_HD Vector spread(float v) { return Vector{} + v; }
FO_HD Vector multiply_add(Vector a, Vector b, Vector c) {
  for (int l = 0; l < 4; ++l) c[l] = fma(a[l], b[l], c[l]);
  return c;
}
FO_HD void stream(float* y, const float* x) { __builtin_memcpy(y, x, sizeof(Vector)); }
#endif
constexpr Index kWidth = sizeof(Vector) / sizeof(float);

void copy(const float* x, float* y, Index n) {
  Index i = 0;
  while (i < n && reinterpret_cast<std::uintptr_t>(y + i) % sizeof(Vector)) {
    y[i] = x[i];
    ++i;
  }
  for (; i + kWidth <= n; i += kWidth) stream(y + i, x + i);
  for (; i < n; ++i) y[i] = x[i];
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Twelve chains hide a latency of six cycles on two units, and with their factors fit in 16 registers.
constexpr int kChains = 12;
constexpr Index kRounds = 4096;

void multiply_add_chains(float* sum) {
  const Vector a = spread(0.5f), b = spread(0.25f);
  Vector chain[kChains];
  for (int c = 0; c < kChains; ++c) chain[c] = spread(*sum + float(c));
  for (Index round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) chain[c] = multiply_add(chain[c], a, b);
  }
  for (int c = 0; c < kChains; ++c) *sum += chain[c][0];
}

constexpr CeilingKernels kCeilings{copy, multiply_add_chains, 2.0 * double(kWidth * kChains * kRounds)};

}  // namespace

const CeilingKernels* ceiling_table() { return &kCeilings; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
