// Checks of header code that Python cannot reach: `check math`, `check philox`. Prints what fails; exit
// status 1 then.
#include <string.h>

#include "check.hpp"
#include "formulas/philox.hpp"
#include "math.hpp"

namespace {

// The same number, zeros by their sign, and any NaN for a NaN. Volatile: the compiler folds nothing away.
template <class T>
bool same(T got, T want) {
  return want != want ? got != got : fastopt::to_bits(got) == fastopt::to_bits(want);
}

template <class T>
void check_words() {
  namespace fo = fastopt;
  volatile T hidden_nan = T(__builtin_nanf("")), hidden_inf = T(__builtin_huge_valf()), hidden_zero = 0;
  const T nan = hidden_nan, inf = hidden_inf, zero = hidden_zero, one = 1, two = 2;
  const T denormal = fo::from_bits<T>(1);

  CHECK(same(fo::select(true, one, nan), one));
  CHECK(same(fo::select(false, one, nan), nan));

  CHECK(same(fo::min(one, two), one) && same(fo::min(two, one), one));
  CHECK(same(fo::max(one, two), two) && same(fo::max(two, one), two));
  CHECK(same(fo::min(nan, one), nan) && same(fo::max(nan, one), nan));
  CHECK(same(fo::min(one, nan), one) && same(fo::max(one, nan), one));
  CHECK(same(fo::min(-inf, one), -inf) && same(fo::max(one, inf), inf));
  CHECK(same(fo::min(zero, -zero), zero) && same(fo::max(-zero, zero), -zero));

  CHECK(same(fo::abs(-two), two) && same(fo::abs(-zero), zero) && same(fo::abs(-inf), inf));
  CHECK(same(fo::abs(nan), nan) && same(fo::abs(-denormal), denormal));

  CHECK(same(fo::copysign(two, -zero), -two) && same(fo::copysign(-two, one), two));
  CHECK(same(fo::copysign(zero, -inf), -zero) && same(fo::copysign(nan, -one), nan));

  CHECK(same(fo::sign(two), one) && same(fo::sign(-denormal), -one) && same(fo::sign(-inf), -one));
  CHECK(same(fo::sign(zero), zero) && same(fo::sign(-zero), zero) && same(fo::sign(nan), zero));

  CHECK(fo::is_finite(zero) && fo::is_finite(denormal) &&
        fo::is_finite(fo::from_bits<T>(fo::to_bits(inf) - 1)));
  CHECK(!fo::is_finite(inf) && !fo::is_finite(-inf) && !fo::is_finite(nan));

  CHECK(same(fo::fma(two, T(3), -one), T(5)) && same(fo::fma(two, inf, one), inf));
  CHECK(same(fo::poly(two, T(1), T(10), T(100)), T(421)));
}

bool equal(fastopt::PhiloxBlock got, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return got.word[0] == a && got.word[1] == b && got.word[2] == c && got.word[3] == d;
}

void check_philox() {
  namespace fo = fastopt;
  // the known answers that Random123 is published with (kat_vectors, philox4x32 10)
  CHECK(equal(fo::philox4x32({{0, 0, 0, 0}}, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  CHECK(equal(fo::philox4x32({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u), 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
              0x6d5451fd));
  CHECK(equal(fo::philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
              0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
  // the last again: block in the low half of the counter, offset in the high half, seed as the key
  CHECK(equal(fo::philox_block(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88), 0xd16cfe09,
              0x94fdcceb, 0x5001e420, 0x24126ea1));

  const uint64_t seed = 0x0123456789abcdef, offset = 0xfedcba9876543210;
  const uint64_t starts[] = {0, (uint64_t(1) << 34) - 24, uint64_t(1) << 63};  // the second crosses a carry
  for (uint64_t start : starts)
    for (uint64_t first = start; first < start + 5; ++first)
      for (int64_t n = 0; n < 70; ++n) {
        uint32_t out[72];
        memset(out, 0xa5, sizeof out);
        fo::philox_fill(seed, offset, first, n, out);
        bool right = out[n] == 0xa5a5a5a5;
        for (int64_t i = 0; i < n; ++i) {
          const uint64_t index = first + uint64_t(i);
          right &= out[i] == fo::philox_word(seed, offset, index);
          right &= out[i] == fo::philox_block(seed, offset, index / 4).word[index % 4];
        }
        CHECK(right);
      }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return puts("usage: check math|philox"), 2;
  if (strcmp(argv[1], "math") == 0) check_words<float>(), check_words<double>();
  if (strcmp(argv[1], "philox") == 0) check_philox();
  return fastopt::test::failures != 0;
}
