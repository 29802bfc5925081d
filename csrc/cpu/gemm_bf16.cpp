// Products of float matrices whose elements are rounded to bfloat16; sums stay float.
#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC target("avx512bf16")  // this file alone; dispatch asks the CPU before it uses run_bf16_pairs
#define FO_BF16_PAIRS
#endif

#include "cpu/blocks.hpp"
#include "cpu/loops.hpp"
#include "cpu/table.hpp"
#include "formulas/storage.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

FO_HD float round_bf16(float x) { return load(Store<Bf16>::from(x)); }

// Rounded elements are floats again: products of two are exact, so the sum is all that rounds.
struct Rounded : Exact<float> {
  static constexpr bool packs = true;
  static void convert(float* panel, Index depth, Index width) {
    FO_INDEPENDENT
    for (Index i = 0; i < depth * width; ++i) panel[i] = round_bf16(panel[i]);
  }
};

#if defined(FO_BF16_PAIRS)
// Two steps of k in one element, which an instruction of AVX512-BF16 multiplies and adds at once.
struct Pairs {
  using Type = float;
  static constexpr Index steps = 2;
  static constexpr bool packs = true;
  FO_HD static Vector<float> add_product(Vector<float> x, Vector<float> y, Vector<float> sum) {
    return Vector<float>(_mm512_dpbf16_ps(__m512(sum), (__m512bh)x, (__m512bh)y));
  }
  static void convert(float* panel, Index depth, Index width) {
    for (Index i = 0; i < depth; i += 2) {
      const float *first = panel + i * width, *second = first + width;
      float* to = panel + i / 2 * width;
      if (i + 1 < depth) {
        FO_INDEPENDENT
        for (Index l = 0; l < width; ++l) to[l] = pair(first[l], second[l]);
      } else {
        FO_INDEPENDENT
        for (Index l = 0; l < width; ++l) to[l] = pair(first[l], 0.0f);
      }
    }
  }
  FO_HD static float pair(float low, float high) {
    return from_bits<float>(std::uint32_t(Store<Bf16>::from(low).bits) |
                            std::uint32_t(Store<Bf16>::from(high).bits) << 16);
  }
};
#endif

}  // namespace

void run_bf16(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col,
              void* scratch) {
  run_blocks<Rounded>(args, begin_row, end_row, begin_col, end_col, scratch);
}

#if defined(FO_BF16_PAIRS)
static void run_bf16_pairs(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col,
                           Index end_col, void* scratch) {
  run_blocks<Pairs>(args, begin_row, end_row, begin_col, end_col, scratch);
}
#endif

GemmKernel bf16_pairs() {
#if defined(FO_BF16_PAIRS)
  return run_bf16_pairs;
#else
  return nullptr;
#endif
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
