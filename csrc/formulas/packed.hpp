// Numbers in fewer bytes: rounding to bfloat16 by chance, bytes that share an exponent, and a float32 kept as
// a bfloat16 and the rest. All of it is integer arithmetic on the float's bits, the same on every instruction
// set and device.
//
// Rounding by chance goes up as often as the number is near to the upper neighbour, so that a running average
// whose steps are smaller than the gaps between its values moves all the same: to the nearest, it would stop.
#pragma once

#include "formulas/names.hpp"
#include "formulas/philox.hpp"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// Noise: 20 random bits for each element. The upper ten come from a table that holds each value once and is
// small enough to stay in the first-level cache, read from a place that differs from block to block of
// elements and from step to step; the lower ten are the block's own, so that no value is likelier than
// another.
inline constexpr int kNoiseBits = 20, kNoiseBlock = 1024;
inline constexpr int kNoiseTable = 2 * kNoiseBlock;  // a block may begin anywhere in the first half

// Each array of a tensor has its own: the states, then the parameter where that is rounded by chance.
inline constexpr int kNoiseSlots = 8, kParameterSlot = 4;

// The table's word j; it goes round.
FO_HD constexpr uint32_t noise_word(uint32_t j) {
  uint32_t place = j % kNoiseBlock;  // a permutation: odd factors, and bits that are only added to lower ones
  for (int round = 0; round < 3; ++round) {
    place = (place * 0xb2du + 0x5a7u) % kNoiseBlock;
    place ^= place >> 4;
  }
  return place << (kNoiseBits - 10);
}
// What the noise of elements [block kNoiseBlock, (block + 1) kNoiseBlock) of array `array` is: words of the
// table from `place` on, and `low` more.
struct NoiseStart {
  int place;
  uint32_t low;
};
FO_HD NoiseStart noise_start(uint64_t step, uint64_t array, uint64_t block) {
  const uint32_t word = philox_word(step, array, 4 * block);
  return {int(word % uint32_t(kNoiseBlock)), word >> 22};
}

// half_noise: the upper 16 bits of an element's noise.
inline constexpr int kHalfNoiseShift = kNoiseBits - 16;
FO_HD Bf16 round_by_chance(float x, uint32_t half_noise) {
  return {uint16_t((to_bits(x) + half_noise) >> 16)};
}

// A byte holds the low bits of a float's exponent and three of its mantissa, and a sign where it has one;
// kGroup elements in a row share the exponent of the largest. What is too small for the byte becomes 0, or,
// without a sign, the smallest positive value: averages of squares divide.
inline constexpr int kGroup = 128;

// Words, the upper halves of floats, are numbers or registers of them; codes have kGap to a step.
template <bool Signed>
struct ByteCode {
  static constexpr uint16_t kGap = 16, magnitude_bits = Signed ? 0x7f : 0xff;
  static constexpr uint16_t kKept = kGap * magnitude_bits, kSign = 0x8000, kMagnitude = 0x7fff;

  FO_HD static uint16_t word(float x, uint32_t noise) { return uint16_t((to_bits(x) + noise) >> 16); }
  template <class Word>
  FO_HD static Word magnitude(Word word) {
    return Word(word & kMagnitude);
  }
  FO_HD static uint8_t exponent(uint16_t largest_magnitude) { return uint8_t(largest_magnitude >> 7); }
  // The word below the smallest that a group with this exponent has.
  FO_HD static uint16_t base(uint8_t exponent) {
    const int lowest = 8 * exponent + 7 - magnitude_bits;
    return uint16_t(lowest < 0 ? 0 : lowest * kGap);
  }
  template <class Word>
  FO_HD static Word code(Word word, Word base) {
    const Word m = magnitude(word), above = Word(Word(m > base ? m : base) - base) / kGap;
    if constexpr (Signed) return Word(above | (word >> 8 & uint16_t(0x80)));
    return above;
  }
  // Of a code that is widened with its sign.
  template <class Word>
  FO_HD static Word decoded(Word code, Word base) {
    const Word low = Word(code * kGap);
    if constexpr (Signed) {
      const Word zero = Word(low & uint16_t(kKept | kSign));
      return (low & kKept) != 0 ? Word(zero + base) : zero;
    } else {
      return Word(low + base);
    }
  }
  FO_HD static float value(uint8_t code, uint16_t base) {
    const uint16_t widened = Signed ? uint16_t(int8_t(code)) : uint16_t(code);
    return from_bits<float>(uint32_t(decoded(widened, base)) << 16);
  }
};

// A float32 as the bfloat16 nearest to it (of two, the one farther from 0) and the signed 16 bits that are
// missing.
FO_HD uint32_t one_nan(float x) {
  const uint32_t bits = to_bits(x);
  return (bits & ~Real<float>::sign) > Real<float>::inf ? Real<float>::nan : bits;
}
FO_HD Bf16 high_part(float x) { return {uint16_t((one_nan(x) + 0x8000u) >> 16)}; }
FO_HD int16_t low_part(float x) {
  const uint32_t bits = one_nan(x);
  return int16_t(uint16_t(bits - ((bits + 0x8000u) & 0xffff0000u)));
}
FO_HD float join(Bf16 high, int16_t low) {
  return from_bits<float>((uint32_t(high.bits) << 16) + uint32_t(int32_t(low)));
}

// How state `s` of a rule with these states may be stored: as a byte with a sign, without one, or only as it
// is computed. Averages may; what the rule compares, or adds up to reach the parameters, may not, nor what a
// difference of two is taken of.
enum class Packable : uint8_t { no, with_sign, without_sign };

constexpr Packable packable(const Names& states, int s) {
  constexpr Names kSigned{"exp_avg", "exp_avg_diff", "exp_avg_fast", "exp_avg_slow", "momentum_buffer"},
      kUnsigned{"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "exp_avg_var"};
  if (states.has("grad_avg")) return Packable::no;
  return kSigned.has(states.at[s])     ? Packable::with_sign
         : kUnsigned.has(states.at[s]) ? Packable::without_sign
                                       : Packable::no;
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
