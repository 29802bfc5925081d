// The only words a formula may use, for float and double, on the CPU and on CUDA devices.
//
// Everything is branch-free, so that the compiler vectorises a loop over it, and built from IEEE operations
// alone, so that every instruction set with a fused multiply-add gives the same bits. That needs
// -ffp-contract=off (nvcc: -fmad=false). tools/fit_math.py derives the coefficients. "max a / b ULP" above a
// function bounds its error with / without fused multiply-adds, for both types; tests/test_math.py holds it
// to that. Measured by tests/native/math_sweep.cpp over all floats and over a sample of 2 * 10^8 doubles.
#pragma once

#include <stdint.h>

#ifndef FASTOPT_ISA
#error "FASTOPT_ISA must name the instruction set this file is compiled for (host, v2, v3, v4, neon, cuda)"
#endif

#ifdef __CUDACC__
#define FO_HD __host__ __device__ __forceinline__
#else
#define FO_HD inline __attribute__((always_inline))
#endif

namespace fastopt {
inline namespace FASTOPT_ISA {

// The format of T, and the constants that depend on it. n * ln2_hi is exact for every exponent n. Beyond
// exp_min, exp_max, expm1_min, tanh_max, sigmoid_max and erf_max a function has its limit: 0, inf, -1 and 1.
template <class T>
struct Real;

template <>
struct Real<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23;
  static constexpr Bits bias = 127, one = 0x3f800000, sign = 0x80000000, inf = 0x7f800000, nan = 0x7fc00000;
  static constexpr Bits sqrt_half = 0x3f3504f3;
  static constexpr float smallest_normal = 0x1p-126f, two_mantissa = 0x1p23f;
  static constexpr float log2e = 0x1.715476p0f;
  static constexpr float ln2_hi = 0x1.62e4p-1f, ln2_lo = 0x1.7f7d1cp-20f;
  static constexpr float exp_min = -104.0f, exp_max = 89.0f, expm1_min = -20.0f;
  static constexpr float tanh_max = 10.0f, sigmoid_max = 18.0f, erf_max = 4.0f;
};

template <>
struct Real<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52;
  static constexpr Bits bias = 1023, one = 0x3ff0000000000000, sign = 0x8000000000000000,
                        inf = 0x7ff0000000000000, nan = 0x7ff8000000000000;
  static constexpr Bits sqrt_half = 0x3fe6a09e667f3bcd;
  static constexpr double smallest_normal = 0x1p-1022, two_mantissa = 0x1p52;
  static constexpr double log2e = 0x1.71547652b82fep0;
  static constexpr double ln2_hi = 0x1.62e42fefa2p-1, ln2_lo = 0x1.9ef35793c7673p-41;
  static constexpr double exp_min = -746.0, exp_max = 710.0, expm1_min = -40.0;
  static constexpr double tanh_max = 20.0, sigmoid_max = 38.0, erf_max = 6.0;
};

template <class T>
using Bits = typename Real<T>::Bits;

template <class T>
FO_HD Bits<T> to_bits(T x) {
  return __builtin_bit_cast(Bits<T>, x);
}
template <class T>
FO_HD T from_bits(Bits<T> b) {
  return __builtin_bit_cast(T, b);
}

template <class T>
FO_HD T select(bool c, T yes, T no) {
  return c ? yes : no;
}

// min and max give a where a is NaN, and where b is NaN; of two equal values (+0, -0) they give a.
template <class T>
FO_HD T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
FO_HD T max(T a, T b) {
  return b > a ? b : a;
}

template <class T>
FO_HD T abs(T x) {
  return from_bits<T>(to_bits(x) & ~Real<T>::sign);
}

// x, or 0 where its magnitude is below the normal numbers. Averages of gradients that have become 0 (a dead
// ReLU's) would stay there for good: 0.9 of the smallest numbers rounds to themselves, and each operation on
// them takes a CPU tens of cycles.
template <class T>
FO_HD T flushed(T x) {
  return select(abs(x) < Real<T>::smallest_normal, T(0), x);
}

template <class T>
FO_HD T copysign(T magnitude, T sign) {
  return from_bits<T>((to_bits(magnitude) & ~Real<T>::sign) | (to_bits(sign) & Real<T>::sign));
}

// -1, 0 or 1; 0 for both zeros and for NaN.
template <class T>
FO_HD T sign(T x) {
  return select(x > T(0), T(1), select(x < T(0), T(-1), T(0)));
}

template <class T>
FO_HD bool is_finite(T x) {
  return abs(x) < from_bits<T>(Real<T>::inf);
}

#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__aarch64__)
#define FASTOPT_FMA
#endif

// a * b + c, with one rounding where the hardware has it and with two elsewhere.
FO_HD float fma(float a, float b, float c) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(FASTOPT_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

FO_HD double fma(double a, double b, double c) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#elif defined(FASTOPT_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

FO_HD float sqrt(float x) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

FO_HD double sqrt(double x) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// c0 + c1 x + c2 x^2 + ...
template <class T>
FO_HD T poly(T, T c0) {
  return c0;
}
template <class T, class... C>
FO_HD T poly(T x, T c0, C... rest) {
  return fma(poly(x, rest...), x, c0);
}

// The same in pairs of terms, given x^2 too: fewer roundings follow one another.
template <class T>
FO_HD T poly2(T, T, T c0) {
  return c0;
}
template <class T>
FO_HD T poly2(T x, T, T c0, T c1) {
  return fma(c1, x, c0);
}
template <class T, class... C>
FO_HD T poly2(T x, T x2, T c0, T c1, T c2, C... rest) {
  return fma(poly2(x, x2, c2, rest...), x2, fma(c1, x, c0));
}

// (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2
FO_HD float exp_tail(float r) {
  return poly(r, 0x1p-1f, 0x1.555554p-3f, 0x1.5554fp-5f, 0x1.11130ap-7f, 0x1.6d439p-10f, 0x1.9e03bap-13f);
}

FO_HD double exp_tail(double r) {
  return poly(r, 0x1p-1, 0x1.5555555555559p-3, 0x1.555555555554cp-5, 0x1.111111110f648p-7,
              0x1.6c16c16c1b32cp-10, 0x1.a01a01b00c7b3p-13, 0x1.a01a018b46dd3p-16, 0x1.71ddf7f0971ddp-19,
              0x1.27e519692a814p-22, 0x1.af5f6e7e7e8fdp-26, 0x1.1f10866323229p-29);
}

// The same within 2^-26 of exp(r) - 1, for functions whose other roundings hide that: with fused
// multiply-adds they do.
FO_HD float exp_tail_short(float r) {
#if defined(FASTOPT_FMA)
  return poly(r, 0x1p-1f, 0x1.5554aep-3f, 0x1.55557cp-5f, 0x1.1228fp-7f, 0x1.6c9d52p-10f);
#else
  return exp_tail(r);
#endif
}

FO_HD double exp_tail_short(double r) { return exp_tail(r); }

// log(1 + f) - f for sqrt(1/2) <= 1 + f <= sqrt(2)
FO_HD float log_tail(float f) {
  return f * f *
         poly(f, -0x1p-1f, 0x1.555546p-2f, -0x1.00000ap-2f, 0x1.99a548p-3f, -0x1.555ae8p-3f, 0x1.232cbap-3f,
              -0x1.fc4c54p-4f, 0x1.e7a89cp-4f, -0x1.dd70fp-4f, 0x1.11cff8p-4f);
}

FO_HD double log_tail(double f) {
  double s = f / (2.0 + f), z = s * s, h = 0.5 * f * f;
  double r = poly(z, 0x1.5555555555594p-1, 0x1.999999997f6eep-2, 0x1.24924942423edp-2, 0x1.c71c51ceeacd2p-3,
                  0x1.746649e261b8dp-3, 0x1.39a0b1c03dbcbp-3, 0x1.2f0f4cbb2f684p-3);
  return fma(s, fma(z, r, h), -h);
}

// erf(a) / a - 1 for a = sqrt(z) <= 1
FO_HD float erf_small(float z) {
  return poly(z, 0x1.06eba8p-3f, -0x1.81274p-2f, 0x1.ce2d5p-4f, -0x1.b7fe8ep-6f, 0x1.542deep-8f,
              -0x1.a5099ep-11f, 0x1.4c2f4cp-14f);
}

FO_HD double erf_small(double z) {
  return poly(z, 0x1.06eba8214db69p-3, -0x1.812746b0379fdp-2, 0x1.ce2f21a04362dp-4, -0x1.b82ce312abefep-6,
              0x1.565bcd1298e84p-8, -0x1.c02db49afb8cbp-11, 0x1.f9a335368c5f6p-14, -0x1.f4d3335ad34d6p-17,
              0x1.b9ee92f3c52p-20, -0x1.5f9810fc0cc3fp-23, 0x1.fc77ba102e001p-27, -0x1.4675d488fef9fp-30,
              0x1.296e609a1cbd9p-34);
}

// log(1 - erf(1 + v)) for 0 <= v <= erf_max - 1
FO_HD float log_erfc(float v) {
  return poly(v, -0x1.d97fcp0f, -0x1.51c99ep1f, -0x1.afaec8p-1f, -0x1.53a786p-5f, 0x1.423d3cp-7f,
              -0x1.d4edap-10f, 0x1.7290eap-13f);
}

FO_HD double log_erfc(double v) {
  return poly(v, -0x1.d97fbf27aa2a1p0, -0x1.51c9b0006c23bp1, -0x1.afabc11a29379p-1, -0x1.5477f09c29a4ep-5,
              0x1.48c9d3f047d46p-7, -0x1.033f661fa51f2p-9, 0x1.f1b3a2b5195ap-13, 0x1.b8dc9e69bfbe3p-16,
              -0x1.c7a3d9ee0d426p-16, 0x1.4261fe0fb3904p-17, -0x1.144d9ca5f92c1p-19, 0x1.30f24ace64a53p-23,
              0x1.a51a073b84f79p-24, -0x1.c0d2bbbd0eb23p-25, 0x1.0150d32fea26ap-26, -0x1.8ba8d68893f28p-29,
              0x1.9753a1ba45791p-32, -0x1.fe7332141dc4cp-36, 0x1.26ccecb094dcp-40);
}

// P(z) and Q(z) of Phi(x) = 1/2 + x P(x^2) / (2 Q(x^2)) for x^2 <= normal_max, where Phi is the cumulative
// probability of the standard normal distribution
inline constexpr float normal_max = 30.25f;
FO_HD float normal_p(float z, float z2) {
  return poly2(z, z2, 0x1.446a78p19f, 0x1.b4662ep15f, 0x1.e4c4e2p12f, 0x1.13b762p8f, 0x1.50e5eep3f,
               0x1.39035cp-5f);
}

FO_HD float normal_q(float z, float z2) {
  return poly2(z, z2, 0x1.969856p19f, 0x1.97cc82p17f, 0x1.725c5p14f, 0x1.84731ep10f, 0x1.e358a4p5f + z);
}

// x = n ln(2) + r + lo with n an integer and |r| <= ln(2) / 2. n is rounded by adding a number so large that
// no fraction is left of the sum; the low bits of that sum are then n + bias + offset, as `field`.
template <class T>
struct ExpArgument {
  T n, r, lo;
  Bits<T> field;
  FO_HD ExpArgument(T x, int offset) {
    round(x, offset);
    T h = fma(n, -Real<T>::ln2_hi, x);
    r = fma(n, -Real<T>::ln2_lo, h);
    lo = fma(n, -Real<T>::ln2_lo, h - r);
  }
  // Of a float, without lo and with an error of 2e-9 n: in one operation, where that rounds once.
  FO_HD static ExpArgument coarse(T x, int offset) {
#if defined(FASTOPT_FMA)
    ExpArgument arg;
    arg.round(x, offset);
    arg.r = fma(arg.n, T(-0x1.62e43p-1), x);
    arg.lo = T(0);
    return arg;
#else
    return ExpArgument(x, offset);
#endif
  }

  FO_HD T expm1_r() const { return fma(r * r, exp_tail(r), r); }
  FO_HD T expm1_r_short() const { return fma(r * r, exp_tail_short(r), r); }
  // 2^(n + offset), where that is a normal number: what lies above the exponent is shifted out.
  FO_HD T power() const { return from_bits<T>(field << Real<T>::mantissa); }

 private:
  FO_HD ExpArgument() {}
  FO_HD void round(T x, int offset) {
    T shift = T(1.5) * Real<T>::two_mantissa + T(int(Real<T>::bias) + offset);
    T t = fma(x, Real<T>::log2e, shift);
    n = t - shift;
    field = to_bits(t);
  }
};

// e^x for exp_min <= x <= exp_max.
template <class T>
FO_HD T exp_in_range(T x) {
  ExpArgument<T> arg(x, int(Real<T>::bias));
  // 2^n as a product of two normal numbers: the second product rounds denormals
  Bits<T> field = arg.field - to_bits(T(1.5) * Real<T>::two_mantissa), half = field >> 1;
  T s = from_bits<T>(half << Real<T>::mantissa);
  return fma(arg.expm1_r(), s, s) * from_bits<T>((field - half) << Real<T>::mantissa);
}

// e^x, max 1.00 / 1.00 ULP. Overflows to inf and underflows through the denormals to 0.
template <class T>
FO_HD T exp(T x) {
  T y = select(x < Real<T>::exp_min, T(0), exp_in_range(x));
  return select(x > Real<T>::exp_max, from_bits<T>(Real<T>::inf), y);
}

// A power of two by which numbers down to e^exp_min are normal.
template <class T>
inline constexpr int kLift = Real<T>::mantissa + 2;
template <class T>
FO_HD constexpr T lowered() {
  return T(1) / T(Bits<T>(1) << kLift<T>);
}

// e^x of x <= 0, max 1.05 / 1.05 ULP, at three quarters of the cost of exp.
template <class T>
FO_HD T exp_nonpositive(T x) {
  ExpArgument<T> arg(x, kLift<T>);
  T s = arg.power();
  return select(x < Real<T>::exp_min, T(0), fma(arg.expm1_r_short(), s, s) * lowered<T>());
}

// e^x of x <= 0 as a term of a sum with terms near 1: max 4.6 / 1.05 ULP, and less for small |x|: nothing
// beside the rounding of an x that is a difference. 0 below e^-87.
FO_HD float exp_term(float x) {
  ExpArgument<float> arg = ExpArgument<float>::coarse(x, 0);
  float s = arg.power();
  return select(x < -87.0f, 0.0f, fma(arg.expm1_r_short(), s, s));
}

FO_HD double exp_term(double x) { return exp_nonpositive(x); }

// e^x - 1 for expm1_min <= x <= exp_max, with the sign of zero lost.
template <class T>
FO_HD T expm1_in_range(T x) {
  ExpArgument<T> arg(x, -1);
  T tail = fma(arg.r * arg.r, exp_tail(arg.r), arg.lo);
  // 2^(n-1): 2^n itself would overflow too early
  T scale = arg.power();
  T y = T(2) * fma(tail, scale, fma(arg.r, scale, scale - T(0.5)));
  return select(arg.n == T(0), arg.r + tail, y);
}

// e^x - 1, max 1.35 / 1.35 ULP. Keeps the sign of zero.
template <class T>
FO_HD T expm1(T x) {
  T y = select(x < Real<T>::expm1_min, T(-1), copysign(expm1_in_range(x), x));
  return select(x > Real<T>::exp_max, from_bits<T>(Real<T>::inf), y);
}

// The positive number with these bits as 2^k m with sqrt(1/2) <= m < sqrt(2).
template <class T>
struct LogArgument {
  T k, m;
  FO_HD LogArgument(Bits<T> b, T k_extra) {
    constexpr Bits<T> fraction = (Bits<T>(1) << Real<T>::mantissa) - 1;
    b += Real<T>::one - Real<T>::sqrt_half;
    // an integer becomes a T as the low bits of a large one
    k = from_bits<T>((b >> Real<T>::mantissa) | to_bits(Real<T>::two_mantissa)) -
        (Real<T>::two_mantissa + T(Real<T>::bias) + k_extra);
    m = from_bits<T>((b & fraction) + Real<T>::sqrt_half);
  }
};

// k ln(2) + log(1 + f) - c for a tiny c
template <class T>
FO_HD T log_sum(T k, T f, T c) {
  T a = k * Real<T>::ln2_hi, hi = a + f, lo = (a - hi) + f;
  return hi + (lo - c + fma(k, Real<T>::ln2_lo, log_tail(f)));
}

// y where x, shifted by `pole`, is positive and finite; -inf at the pole, NaN below it, inf at inf.
template <class T>
FO_HD T log_ends(T x, T pole, T y) {
  constexpr Bits<T> inf = Real<T>::inf, nan = Real<T>::nan, sign = Real<T>::sign;
  T outside = select(x == pole, from_bits<T>(inf | sign), from_bits<T>(nan));
  return select(x > pole, select(x < from_bits<T>(inf), y, x), outside);
}

// Natural logarithm, max 0.90 / 0.95 ULP. -inf at both zeros, NaN below; denormals included.
template <class T>
FO_HD T log(T x) {
  bool tiny = x < Real<T>::smallest_normal;
  T scaled = select(tiny, x * Real<T>::two_mantissa, x);
  LogArgument<T> arg(to_bits(scaled), select(tiny, T(Real<T>::mantissa), T(0)));
  return log_ends(x, T(0), log_sum(arg.k, arg.m - T(1), T(0)));
}

// log(1 + x), max 0.90 / 0.95 ULP. Keeps the sign of zero; -inf at -1, NaN below.
template <class T>
FO_HD T log1p(T x) {
  T u = T(1) + x, v = u - T(1);
  T lost = (T(1) - (u - v)) + (x - v);  // 1 + x = u + lost, exactly
  LogArgument<T> arg(to_bits(u), T(0));
  // lost 2^-k, by way of 2^(1-k), which exists for every k
  T scale = from_bits<T>(to_bits(arg.m) - to_bits(u) + to_bits(T(2)));
  T f0 = arg.m - T(1), rest = lost * scale * T(0.5);
  T f = f0 + rest, excess = (f - f0) - rest;
  return log_ends(x, T(-1), copysign(log_sum(arg.k, f, excess - excess * f), x));
}

// e^x - 1 for a tanh of x / 2, which no longer sees what n loses in `coarse`.
FO_HD float expm1_for_tanh(float x) {
  ExpArgument<float> arg = ExpArgument<float>::coarse(x, 0);
  float s = arg.power();
  return fma(arg.expm1_r_short(), s, s - 1.0f);
}

FO_HD double expm1_for_tanh(double x) { return expm1_in_range(x); }

// tanh x, max 2.55 / 2.55 ULP. Keeps the sign of zero.
template <class T>
FO_HD T tanh(T x) {
  T a = abs(x), e = expm1_for_tanh(a + a);
  T y = select(a > Real<T>::tanh_max, T(1), e / (e + T(2)));
  return from_bits<T>(to_bits(y) | (to_bits(x) & Real<T>::sign));
}

// 1 / (1 + e^-x), max 2.45 / 2.45 ULP, down to the denormals.
template <class T>
FO_HD T sigmoid(T x) {
  // Numerator and denominator are lowered, so that e^-x does not overflow before the quotient is 0.
  ExpArgument<T> arg(-x, -kLift<T>);
  T s = arg.power(), one = lowered<T>();
  T y = select(x < Real<T>::exp_min, T(0), one / fma(arg.expm1_r_short(), s, s + one));
  return select(x > Real<T>::sigmoid_max, T(1), y);
}

// erf x, max 1.05 / 1.35 ULP. Keeps the sign of zero.
template <class T>
FO_HD T erf(T x) {
  T a = abs(x), small = fma(a, erf_small(a * a), a);
  T large = select(a > Real<T>::erf_max, T(1), T(1) - exp_in_range(log_erfc(a - T(1))));
  return copysign(select(a < T(1), small, large), x);
}

// Phi(x), max absolute error 1.8e-7 / 7e-8 for float and 1.3e-16 for double. Of a NaN it may be a
// number: it is for products with x.
FO_HD float normal_cdf(float x) {
#if defined(FASTOPT_FMA)
  // A third of the work that erf takes. The bits of positive floats compare like the numbers, at half the
  // cost, and those of negative ones are below 0.
  float z = from_bits<float>(min(to_bits(x * x), to_bits(normal_max))), z2 = z * z;
  float q = normal_q(z, z2), n = fma(x, normal_p(z, z2), q);
  float y = from_bits<float>(uint32_t(max(int32_t(to_bits(n)), 0))) / (q + q);
  return from_bits<float>(min(to_bits(y), Real<float>::one));
#else
  return fma(0.5f, erf(x * 0.70710678f), 0.5f);  // the quotient would err by 2.3e-7
#endif
}

FO_HD double normal_cdf(double x) { return fma(0.5, erf(x * 0.70710678118654752440), 0.5); }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
