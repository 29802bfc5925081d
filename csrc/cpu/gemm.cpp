// The gemm driver.
#include "core/dispatch.hpp"
#include "cpu/epilogue.hpp"
#include "cpu/table.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <class T>
void run(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col, void*) {
  const T *a = static_cast<const T*>(args.a.data), *b = static_cast<const T*>(args.b.data);
  for (Index col = begin_col; col < end_col; col += kFinishColumns) {
    const Index cols = end_col - col < kFinishColumns ? end_col - col : kFinishColumns;
    for (Index i = begin_row; i < end_row; ++i) {
      T* c = static_cast<T*>(args.c) + i * args.c_row;
      for (Index j = col; j < col + cols; ++j) {
        T sum = T(0);
        for (Index p = 0; p < args.k; ++p)
          sum = fma(a[i * args.a.row + p * args.a.col], b[p * args.b.row + j * args.b.col], sum);
        c[j] = args.beta == 0.0 ? sum : fma(T(args.beta), c[j], sum);
      }
    }
    finish<T>(args, begin_row, end_row - begin_row, col, cols);
  }
}

constexpr GemmKernels kGemm[] = {{run<float>, 12, 32, 4096}, {run<double>, 12, 16, 4096}};

}  // namespace

const GemmKernels* gemm_table() { return kGemm; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
