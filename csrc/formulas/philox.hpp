// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
// easy as 1, 2, 3" (SC 2011). It has no state: word i of stream (seed, offset) is a function of the three
// numbers alone, so that any device, thread count and block size gives the same mask, and a backward pass can
// make it again.
#pragma once

#include <stdint.h>

#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

struct PhiloxBlock {
  uint32_t word[4];
};

// Ten rounds of the counter under the key {key0, key1}.
FO_HD PhiloxBlock philox4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  uint32_t a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    uint64_t p = uint64_t(a) * 0xD2511F53u, q = uint64_t(c) * 0xCD9E8D57u;
    a = uint32_t(q >> 32) ^ b ^ key0;
    c = uint32_t(p >> 32) ^ d ^ key1;
    b = uint32_t(q);
    d = uint32_t(p);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

// The words of elements 4 block ... 4 block + 3.
FO_HD PhiloxBlock philox_block(uint64_t seed, uint64_t offset, uint64_t block) {
  return philox4x32({{uint32_t(block), uint32_t(block >> 32), uint32_t(offset), uint32_t(offset >> 32)}},
                    uint32_t(seed), uint32_t(seed >> 32));
}

// The word of one element.
FO_HD uint32_t philox_word(uint64_t seed, uint64_t offset, uint64_t index) {
  const PhiloxBlock block = philox_block(seed, offset, index / 4);
  const uint32_t low = index & 1 ? block.word[1] : block.word[0],
                 high = index & 1 ? block.word[3] : block.word[2];
  return index & 2 ? high : low;
}

// Dropout of one element by its word: it stays, scaled, where the word is at most last_kept.
template <class T>
FO_HD T drop(uint32_t word, uint32_t last_kept, T x, T scale) {
  return select(word <= last_kept, x * scale, T(0));
}

// The words of elements first ... first + n - 1, for drivers: whole blocks in a loop that vectorises, and the
// ends.
FO_HD void philox_fill(uint64_t seed, uint64_t offset, uint64_t first, int64_t n, uint32_t* out) {
  uint64_t block = first / 4;
  if (int k = int(first % 4); k != 0) {
    const PhiloxBlock words = philox_block(seed, offset, block++);
    for (; k < 4 && n > 0; ++k, --n) *out++ = words.word[k];
  }
  const int64_t blocks = n / 4;
  for (int64_t j = 0; j < blocks; ++j) {
    const PhiloxBlock words = philox_block(seed, offset, block + uint64_t(j));
    for (int k = 0; k < 4; ++k) out[4 * j + k] = words.word[k];
  }
  const PhiloxBlock words = philox_block(seed, offset, block + uint64_t(blocks));
  for (int64_t k = 4 * blocks; k < n; ++k) out[k] = words.word[k % 4];
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
