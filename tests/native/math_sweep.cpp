// Largest errors of csrc/math.hpp in ULP: the figures in its comments come from this program.
//   g++ -std=c++17 -O3 -march=x86-64-v3 -fno-math-errno -fno-trapping-math -ffp-contract=off
//       -DFASTOPT_ISA=v3 -Icsrc tests/native/math_sweep.cpp -o math_sweep
//   ./math_sweep float STRIDE [function]    every STRIDE-th of the 2^32 inputs (an odd STRIDE), against libm
//   in double
//   ./math_sweep double COUNT [function]    COUNT random inputs, against libm in long double (80 bits)
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "math.hpp"

namespace {

struct Function {
  const char* name;
  float (*f32)(float);
  double (*f64)(double);
  double (*wide_f32)(double);
  long double (*wide_f64)(long double);
};

long double sigmoid_wide(long double x) { return x < 0 ? expl(x) / (1 + expl(x)) : 1 / (1 + expl(-x)); }
double sigmoid_wide(double x) { return x < 0 ? ::exp(x) / (1 + ::exp(x)) : 1 / (1 + ::exp(-x)); }

// exp_term takes what is not above 0, and means what is not below -87.
template <class T>
T term_input(T x) {
  return fabs(x) > 87 ? T(-87) : T(-fabs(x));
}

#define FUNCTION(NAME, WIDE_F32, WIDE_F64)                                                               \
  {#NAME, [](float x) { return fastopt::NAME(x); }, [](double x) { return fastopt::NAME(x); }, WIDE_F32, \
   WIDE_F64}

const Function functions[] = {
    FUNCTION(exp, ::exp, expl),
    {"exp_nonpositive", [](float x) { return fastopt::exp_nonpositive(-fastopt::abs(x)); },
     [](double x) { return fastopt::exp_nonpositive(-fastopt::abs(x)); },
     [](double x) { return ::exp(-fabs(x)); }, [](long double x) { return expl(-fabsl(x)); }},
    {"exp_term", [](float x) { return fastopt::exp_term(term_input(x)); },
     [](double x) { return fastopt::exp_term(term_input(x)); }, [](double x) { return ::exp(term_input(x)); },
     [](long double x) { return expl(term_input(x)); }},
    FUNCTION(expm1, ::expm1, expm1l),
    FUNCTION(log, ::log, logl),
    FUNCTION(log1p, ::log1p, log1pl),
    FUNCTION(tanh, ::tanh, tanhl),
    FUNCTION(erf, ::erf, erfl),
    FUNCTION(sigmoid, sigmoid_wide, sigmoid_wide),
};

// |got - want| in units of the last place of want in T, whose format has `bits` significant bits and least
// exponent `least`.
template <class T, class Wide>
double ulps(T got, Wide want, int bits, int least) {
  if (isnan(want)) return isnan(got) ? 0 : INFINITY;
  T rounded = T(want);
  if (got == rounded && got != 0) return 0.5;  // at most, and the rest is slow
  if (isinf(rounded) || isinf(got) || rounded == 0) {
    if (got == rounded && signbit(got) == signbit(rounded)) return 0;
    return nextafter(rounded, T(0)) == got || (rounded == 0 && fabs(got) == ldexp(1, least - bits + 1))
               ? 1
               : INFINITY;
  }
  int exponent = ilogbl(want) < least ? least : ilogbl(want);
  return double(fabsl((long double)got - want) / ldexpl(1, exponent - bits + 1));
}

void sweep_float(const Function& f, uint64_t stride) {
  double worst = 0;
  float at = 0;
  for (uint64_t i = 0; i < (uint64_t(1) << 32); i += stride) {
    float x = fastopt::from_bits<float>(uint32_t(i));
    double e = ulps(f.f32(x), f.wide_f32(x), 24, -126);
    if (e > worst) worst = e, at = x;
  }
  printf("%-16s float  %.3f at %a\n", f.name, worst, double(at));
}

uint64_t state = 0x9E3779B97F4A7C15;
uint64_t random_bits() {  // xorshift64*
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return state * 0x2545F4914F6CDD1D;
}

// A fifth of the inputs has random bits; the others are spread over the ranges where the functions do
// something.
double random_input(uint64_t i) {
  const double u = double(int64_t(random_bits())) * 0x1p-63;
  switch (i % 5) {
    case 0:
      return fastopt::from_bits<double>(random_bits());
    case 1:
      return u * 2;
    case 2:
      return u * ldexp(1, int(random_bits() % 16) - 8);
    case 3:
      return u * 40;
    default:
      return u * 750;
  }
}

void sweep_double(const Function& f, uint64_t count) {
  double worst = 0, at = 0;
  for (uint64_t i = 0; i < count; i++) {
    double x = random_input(i);
    double e = ulps(f.f64(x), f.wide_f64(x), 53, -1022);
    if (e > worst) worst = e, at = x;
  }
  printf("%-16s double %.3f at %a\n", f.name, worst, at);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return puts("usage: math_sweep float|double STRIDE|COUNT [function]"), 2;
  uint64_t number = strtoull(argv[2], nullptr, 10);
  for (const Function& f : functions) {
    if (argc > 3 && strcmp(argv[3], f.name) != 0) continue;
    strcmp(argv[1], "float") == 0 ? sweep_float(f, number) : sweep_double(f, number);
    fflush(stdout);
  }
  return 0;
}
