// A group of floats as bytes under one exponent, and back.
#pragma once

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

template <bool Signed>
inline std::uint16_t largest_magnitude(const std::uint16_t* words, int n) {
  std::uint16_t largest = 0;
  FO_INDEPENDENT
  for (int i = 0; i < n; ++i) {
    const std::uint16_t m = ByteCode<Signed>::magnitude(words[i]);
    largest = m > largest ? m : largest;
  }
  return largest;
}

// Returns the exponent.
template <bool Signed>
inline std::uint8_t encode_group(const float* from, const std::uint32_t* noise, std::uint32_t low,
                                 std::uint8_t* codes, int n) {
  using Code = ByteCode<Signed>;
  std::uint16_t words[kGroup];
  FO_INDEPENDENT
  for (int i = 0; i < n; ++i) words[i] = Code::word(from[i], noise[i] + low);
  const std::uint8_t exponent = Code::exponent(largest_magnitude<Signed>(words, n));
  const std::uint16_t base = Code::base(exponent);
  FO_LANES
  for (int i = 0; i < n; ++i) codes[i] = std::uint8_t(Code::code(words[i], base));
  return exponent;
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
