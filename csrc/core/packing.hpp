// What of a tensor under an optimizer is stored in fewer bytes than it is computed with.
#pragma once

#include "core/array.hpp"

namespace fastopt {

// How a state array is stored. The order is the index of the tables below.
enum class Stored : std::uint8_t { as_computed, bf16, signed_byte, unsigned_byte };
inline constexpr int kStoredKinds = 4;

struct Packing {
  Stored states[4] = {};
  std::uint8_t* exponents[4] = {};    // of bytes, one for each group of elements
  std::int16_t* remainder = nullptr;  // null, or what bfloat16 parameters lack of float32 ones
  bool by_chance = false;             // bfloat16 parameters are rounded so
  void* shadow = nullptr;             // null, or receives float32 parameters rounded to shadow_dtype
  DType shadow_dtype = DType::bf16;

  bool any() const {
    for (const Stored stored : states)
      if (stored != Stored::as_computed) return true;
    return remainder || by_chance || shadow;
  }
};

// Noise of elements in a row: each one's word and `low`, 20 bits; `halves` are the upper 16 bits of the
// words.
struct Noise {
  const std::uint32_t* words;
  const std::uint32_t* halves;
  std::uint32_t low;

  Noise from(Index element) const { return {words + element, halves + element, low}; }
};
// That of one array's elements from `element` on, in one step; it ends with the block of kNoiseBlock.
Noise noise(double step, Index array, Index element);

// Pieces of arrays that begin at a group's first element.
struct PackingKernels {
  void (*decode[kStoredKinds])(const void* from, const std::uint8_t* exponents, float* to, Index n);
  void (*encode[kStoredKinds])(const float* from, const Noise& noise, void* to, std::uint8_t* exponents,
                               Index n);
  void (*widen[kDTypes])(const void* from, float* to, Index n);  // of two bytes
  void (*join)(const void* high, const std::int16_t* low, float* to, Index n);
  void (*split)(const float* from, void* high, std::int16_t* low, Index n);
  void (*narrow[kDTypes])(const float* from, void* to, Index n);  // to the nearest
};

}  // namespace fastopt
