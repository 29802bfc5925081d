// Arrays in fewer bytes to floats and back, a tile at a time.
#include "core/packing.hpp"

#include "cpu/bytes.hpp"
#include "cpu/loops.hpp"
#include "cpu/table.hpp"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <class P>
void widen(const void* from, float* to, Index n) {
  const P* const x = static_cast<const P*>(from);
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) to[i] = load(x[i]);
}
void widen_state(const void* from, const std::uint8_t*, float* to, Index n) { widen<Bf16>(from, to, n); }

template <class P>
void narrow(const float* from, void* to, Index n) {
  P* const y = static_cast<P*>(to);
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) y[i] = Store<P>::from(from[i]);
}

void narrow_by_chance(const float* from, const Noise& noise, void* to, std::uint8_t*, Index n) {
  Bf16* const y = static_cast<Bf16*>(to);
  const std::uint32_t* const halves = noise.halves;
  const std::uint32_t low = noise.low >> kHalfNoiseShift;
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) y[i] = round_by_chance(from[i], halves[i] + low);
}

template <bool Signed>
void decode(const void* codes_, const std::uint8_t* exponents, float* to, Index n) {
  const std::uint8_t* const codes = static_cast<const std::uint8_t*>(codes_);
  Index i = 0;
  for (; i + kGroup <= n; i += kGroup) decode_group<Signed>(codes + i, exponents[i / kGroup], to + i, kGroup);
  if (i < n) decode_group<Signed>(codes + i, exponents[i / kGroup], to + i, int(n - i));
}

template <bool Signed>
void encode(const float* from, const Noise& noise, void* codes_, std::uint8_t* exponents, Index n) {
  std::uint8_t* const codes = static_cast<std::uint8_t*>(codes_);
  Index i = 0;
  for (; i + kGroup <= n; i += kGroup)
    exponents[i / kGroup] = encode_group<Signed>(from + i, noise.words + i, noise.low, codes + i, kGroup);
  if (i < n)
    exponents[i / kGroup] = encode_group<Signed>(from + i, noise.words + i, noise.low, codes + i, int(n - i));
}

void join_all(const void* high, const std::int16_t* low, float* to, Index n) {
  const Bf16* const x = static_cast<const Bf16*>(high);
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) to[i] = join(x[i], low[i]);
}

void split_all(const float* from, void* high, std::int16_t* low, Index n) {
  Bf16* const y = static_cast<Bf16*>(high);
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) {
    y[i] = high_part(from[i]);
    low[i] = low_part(from[i]);
  }
}

constexpr PackingKernels kKernels = {
    .decode = {nullptr, widen_state, decode<true>, decode<false>},
    .encode = {nullptr, narrow_by_chance, encode<true>, encode<false>},
    .widen = {nullptr, nullptr, widen<Bf16>, widen<F16>},
    .join = join_all,
    .split = split_all,
    .narrow = {nullptr, nullptr, narrow<Bf16>, narrow<F16>},
};

}  // namespace

const PackingKernels* packing_table() { return &kKernels; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
