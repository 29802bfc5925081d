// A group of floats as bytes under one exponent, and back.
#pragma once

#include "core/packing.hpp"
#include "cpu/loops.hpp"
#include "formulas/packed.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

template <bool Signed>
inline void decode_group(const std::uint8_t* codes, std::uint8_t exponent, float* to, int n) {
  const std::uint16_t base = ByteCode<Signed>::base(exponent);
  FO_LANES
  for (int i = 0; i < n; ++i) to[i] = ByteCode<Signed>::value(codes[i], base);
}

// Floats on their way to a group's bytes, which share the exponent of the largest: how the loop of a step
// reads and writes such a state. What is read has been decoded before.
template <bool Signed>
struct Worded {
  using Code = ByteCode<Signed>;
  const float* decoded;
  std::uint16_t* words;
  const std::uint32_t* noise;
  std::uint32_t low;
  std::uint16_t largest = 0;

  float read(Index i) const { return decoded[i]; }
  void write(Index i, float x) {
    const std::uint16_t word = Code::word(x, noise[i] + low), m = Code::magnitude(word);
    words[i] = word;
    largest = m > largest ? m : largest;
  }

  // Writes the bytes of the n words and returns their exponent.
  std::uint8_t finish(std::uint8_t* codes, int n) const {
    const std::uint8_t exponent = Code::exponent(largest);
    const std::uint16_t base = Code::base(exponent);
    const std::uint16_t* const from = words;
    FO_LANES
    for (int i = 0; i < n; ++i) codes[i] = Code::code(from[i], base);
    return exponent;
  }
};

// Returns the exponent.
template <bool Signed>
inline std::uint8_t encode_group(const float* from, const std::uint32_t* noise, std::uint32_t low,
                                 std::uint8_t* codes, int n) {
  std::uint16_t words[kGroup];
  Worded<Signed> to{nullptr, words, noise, low};
  FO_INDEPENDENT
  for (int i = 0; i < n; ++i) to.write(i, from[i]);
  return to.finish(codes, n);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
