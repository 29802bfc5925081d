// The gemm driver: C = epilogue(A B + beta C). Blocks of B and, where it pays, of A are packed into panels
// that stay in cache; register tiles multiply them; the epilogue runs over what is still in the first-level
// cache. Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008; Van Zee and van de
// Geijn, BLIS, 2015.
//
// k is cut into blocks of equal length; each is summed from zero, one step after the other, and added to C.
// Both follow from k alone, and so do the bits of C.
#include "core/dispatch.hpp"
#include "cpu/blocks.hpp"
#include "cpu/table.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

constexpr int kRowsOfDots = 16;  // products of fewer rows with a transposed B are computed along k

// Few rows by the rows of B's transpose, both as they lie.
template <class T, int Rows>
FO_HD void run_dot_rows(Index rows, Index columns, const DotArgs<T>& args) {
  constexpr int kColumnsTogether = kVectorRegisters == 32 && kVectorBytes == 64 ? (Rows == 1 ? 8 : 4) : 1;
  if (rows < Rows) {
    if constexpr (Rows > 1) run_dot_rows<T, Rows - 1>(rows, columns, args);
    return;
  }
  DotArgs<T> piece = args;
  Index j = 0;
  for (; j + kColumnsTogether <= columns; j += kColumnsTogether) {
    piece.b = args.b + j * args.b_col;
    piece.c = args.c + j;
    dot_tile<T, Rows, kColumnsTogether>(piece);
  }
  for (; j < columns; ++j) {
    piece.b = args.b + j * args.b_col;
    piece.c = args.c + j;
    dot_tile<T, Rows, 1>(piece);
  }
}

template <class T>
void run_dots(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col) {
  constexpr int kRows = kVectorBytes == 64 ? 4 : 2;
  constexpr Index kTogether = 8;  // columns, whose part of B stays in cache while the rows pass
  const T *a = static_cast<const T*>(args.a.data), *b = static_cast<const T*>(args.b.data);
  T* c = static_cast<T*>(args.c);
  for (Index col = begin_col; col < end_col; col += kTogether) {
    const Index cols = at_most(kTogether, end_col - col);
    for (Index row = begin_row; row < end_row; row += kRows)
      run_dot_rows<T, kRows>(at_most(kRows, end_row - row), cols,
                             {args.k, a + row * args.a.row, args.a.row, b + col * args.b.col, args.b.col,
                              c + row * args.c_row + col, args.c_row, T(args.beta)});
  }
  for (Index col = begin_col; col < end_col; col += kFinishColumns)
    finish<T>(args, begin_row, end_row - begin_row, col, at_most(kFinishColumns, end_col - col));
}

template <class T>
void run(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col,
         void* scratch) {
  if ((args.m <= kRowsOfDots || args.n <= kRowsOfDots) && args.a.col == 1 && args.b.row == 1 &&
      args.b.col != 1 && args.k >= kDotLanes<T>) {
    run_dots<T>(args, begin_row, end_row, begin_col, end_col);
  } else {
    run_blocks<Exact<T>>(args, begin_row, end_row, begin_col, end_col, scratch);
  }
}

template <class T>
constexpr GemmKernels gemm_kernels() {
  return {run<T>, __is_same(T, float) ? run_bf16 : nullptr, kTileRows, kPanel<T>,
          Index(sizeof(T)) * kDepth<T> * (kBlockColumns<T> + kBlockRows)};
}
constexpr GemmKernels kGemm[] = {gemm_kernels<float>(), gemm_kernels<double>()};

}  // namespace

const GemmKernels* gemm_table() { return kGemm; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
