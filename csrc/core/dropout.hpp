// What the probability p of dropping an element means to the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace fastopt {

struct Kept {
  std::uint32_t last;  // an element stays where its random word is at most this
  double scale;        // of those that stay
};

// Of p = 1 nothing stays: what its one word in 2^32 keeps is scaled by 0.
inline Kept kept(double p) {
  const double keep = 1.0 - p, words = std::max(std::floor(keep * 0x1p32), 1.0);
  return {std::uint32_t(words - 1.0), keep > 0.0 ? 1.0 / keep : 0.0};
}

}  // namespace fastopt
