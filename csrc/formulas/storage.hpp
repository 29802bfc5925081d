// Storage types and their conversion at load and store; formulas see only float or double.
// bfloat16 and float16 are converted with integer arithmetic, the same on every instruction set, so that
// their bits do not depend on it either. Stores round to nearest, ties to even.
#pragma once

#include "core/array.hpp"
#include "math.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

template <class S>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeType<S>::type;

FO_HD float load(float x) { return x; }
FO_HD double load(double x) { return x; }
FO_HD float load(Bf16 x) { return __builtin_bit_cast(float, std::uint32_t(x.bits) << 16); }
FO_HD float load(F16 x) {
  const std::uint32_t magnitude = std::uint32_t(x.bits & 0x7fffu) << 13;
  // Exponents are rebiased by a multiplication, which is exact for denormals too; inf and NaN keep theirs.
  const float finite = __builtin_bit_cast(float, magnitude) * 0x1p112f;
  const std::uint32_t value =
      magnitude < 0x0f800000u ? __builtin_bit_cast(std::uint32_t, finite) : magnitude | 0x7f800000u;
  return __builtin_bit_cast(float, value | std::uint32_t(x.bits & 0x8000u) << 16);
}

template <class S>
struct Store;
template <>
struct Store<float> {
  FO_HD static float from(float x) { return x; }
};
template <>
struct Store<double> {
  FO_HD static double from(double x) { return x; }
};
template <>
struct Store<Bf16> {
  FO_HD static Bf16 from(float x) {
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
    const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const std::uint32_t nan = bits | 0x00400000u;  // rounding could carry a NaN into the sign
    return {std::uint16_t(((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded) >> 16)};
  }
};
template <>
struct Store<F16> {
  FO_HD static F16 from(float x) {
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the addition of 0.5 leaves the ten bits of a denormal, rounded by the FPU, at the bottom.
    const std::uint32_t denormal =
        __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, magnitude) + 0.5f) - 0x3f000000u;
    const std::uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    std::uint32_t half = magnitude < 0x38800000u ? denormal : normal;
    half = magnitude >= 0x477ff000u ? special : half;  // 65520 and above round to infinity
    return {std::uint16_t(half | (bits >> 16 & 0x8000u))};
  }
};

}  // namespace FASTOPT_ISA
}  // namespace fastopt
