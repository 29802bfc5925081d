// Comparisons of what a CUDA kernel has left, run on the host, with what the CPU's kernel of the best level
// has.
#pragma once

#include "cuda/kernels.hpp"
#include "native.hpp"

namespace fastopt::test {

template <class T>
bool is_nan(T x) {
  return x != x;
}
inline bool is_nan(Bf16 x) { return is_nan(load(x)); }
inline bool is_nan(F16 x) { return is_nan(load(x)); }

// Counts a failure unless both are the same bits, or both NaN, whose bits no IEEE operation fixes.
template <class S>
void check_same(const std::string& what, const Guarded<S>& got, const Guarded<S>& want) {
  for (Index i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], sizeof(S)) == 0 || (is_nan(got[i]) && is_nan(want[i]))) continue;
    if (failures++ < 50)
      fprintf(stderr, "%s [%ld of %ld]: %.17g, the CPU has %.17g\n", what.c_str(), long(i), long(got.size()),
              double(load(got[i])), double(load(want[i])));
  }
}

template <class S>
Guarded<S> copy(const Guarded<S>& x) {
  Guarded<S> y(x.size());
  std::memcpy(y.data(), x.data(), std::size_t(x.size()) * sizeof(S));
  return y;
}

// Numbers of all magnitudes that the storage type has, and now and then one of the special ones.
template <class S>
Guarded<S> any_numbers(Random& random, Index n) {
  using T = Compute<S>;
  using Limits = std::numeric_limits<double>;
  constexpr double kSpecial[] = {
      0.0,   -0.0,  Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), 1e-45, 1e9, 6e-39,
      -1e-7, 5e-324};
  Guarded<S> x(n);
  for (Index i = 0; i < n; ++i) {
    const double wide = std::ldexp(random.uniform(-1, 1), int(random.below(40)) - 30);
    const Index choice = random.below(64);
    x[i] = Store<S>::from(T(choice < Index(std::size(kSpecial)) ? kSpecial[choice] : wide));
  }
  return x;
}

// n elements and some more, so that the first is aligned to 16 bytes, or is not even for a pack of two.
inline Index padded(Index n, bool aligned) { return n + (aligned ? 16 - n % 16 : 17 - n % 16) % 16; }

// Elements on both sides of every pack and block.
inline constexpr Index kSizes[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 255, 257, 1023, 1024, 1025, 2052};

}  // namespace fastopt::test
