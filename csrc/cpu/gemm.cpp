// The gemm driver: C = epilogue(A B + beta C). Blocks of B and, where it pays, of A are packed into panels
// that stay in cache; register tiles multiply them; the epilogue runs over what is still in the first-level
// cache. Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008; Van Zee and van de
// Geijn, BLIS, 2015.
//
// k is cut into blocks of equal length; each is summed from zero, one step after the other, and added to C.
// Both follow from k alone, and so do the bits of C.
#include "core/dispatch.hpp"
#include "cpu/sparse.hpp"
#include "cpu/table.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// Room for C^T, see run_turned: a quarter of a second-level cache.
template <class T>
constexpr Index kTurnedSize = (Index(1) << 18) / Index(sizeof(T));

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
bool takes_dots(const GemmArgs& args) {
  return (args.m <= kRowsOfDots || args.n <= kRowsOfDots) && args.a.col == 1 && args.b.row == 1 &&
         args.b.col != 1 && args.k >= kDotLanes<T>;
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
  finish_all<T>(args, begin_row, end_row - begin_row, begin_col, end_col);
}

// Rows [begin, end) of the whole of A, packed for runs of any columns.
template <class T>
void pack_a(const GemmArgs& args, Index begin_row, Index end_row, void* packed) {
  const Index blocks = blocks_of(args.k, kDepth<T>), depth = block_depth<T>(args.k);
  for (Index block = 0; block < blocks; ++block) {
    const Index p = block * depth;
    T* const to = static_cast<T*>(packed) + packed_at(args.m, block, begin_row, depth);
    const Product<Exact<T>> product{args, to, nullptr, depth, true, false};
    product.fill_a(begin_row, end_row - begin_row, p, at_most(depth, args.k - p));
  }
}

// Whether C^T = B^T A^T is the cheaper product. It packs the rows of A instead of a transposed B, whose
// elements it takes as they lie: where B is far larger than a narrow A that pays for transposing C.
template <class T>
bool pays_turned(const GemmArgs& args, Index height, Index width) {
  constexpr Index W = Simd<T>::size;
  return height > 0 && args.b.row == 1 && args.b.col != 1 && args.beta == 0.0 && args.k >= 128 &&
         8 * height * height <= kTurnedSize<T> && width >= 4 * height &&
         (height + W - 1) / W * W * 8 <= height * 9;
}

// See GemmKernels.
template <class T>
Index packed_a_size(const GemmArgs& args, Index columns) {
  // Below, a region of its own costs more than packing several times; beyond, A lies in memory.
  constexpr Index kLeast = Index(1) << 17, kMost = Index(1) << 23;
  const Index blocks = blocks_of(args.k, kDepth<T>), depth = block_depth<T>(args.k),
              size = packed_at(args.m, blocks, 0, depth);
  const bool pays = packs_a<T>(args, args.n) && !pays_turned<T>(args, args.m, columns);
  return pays && !takes_dots<T>(args) && size >= kLeast && size <= kMost ? size : 0;
}

// See GemmKernels: a B that lies across is packed by every run of rows.
template <class T>
Index packed_b_size(const GemmArgs& args, Index rows) {
  constexpr Index kLeast = Index(1) << 14, kMost = Index(1) << 20;
  const Index size = packed_b_at<T>(args.n, blocks_of(args.k, kDepth<T>), 0, block_depth<T>(args.k));
  const bool pays = args.b.col != 1 && rows < args.m;
  return pays && !takes_dots<T>(args) && size >= kLeast && size <= kMost ? size : 0;
}

// Columns [begin, end) of the whole of B, packed for runs of any rows.
template <class T>
void pack_b(const GemmArgs& args, Index begin_col, Index end_col, void* packed) {
  const Index blocks = blocks_of(args.k, kDepth<T>), depth = block_depth<T>(args.k);
  for (Index block = 0; block < blocks; ++block) {
    const Index p = block * depth;
    T* const to = static_cast<T*>(packed) + packed_b_at<T>(args.n, block, begin_col, depth);
    const Product<Exact<T>> product{args, nullptr, to, depth, false, true};
    product.fill_b(begin_col, end_col - begin_col, 0, p, at_most(depth, args.k - p));
  }
}

// C by way of its transpose, some columns of C at a time. The sums are the same, step for step.
template <class T>
void run_turned(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col,
                T* scratch) {
  const Index height = end_row - begin_row, most = kTurnedSize<T> / height;
  T* const turned = scratch;
  for (Index col = begin_col; col < end_col; col += most) {
    const Index cols = at_most(most, end_col - col);
    GemmArgs product{args.n,
                     args.m,
                     args.k,
                     {args.b.data, args.b.col, args.b.row},
                     {args.a.data, args.a.col, args.a.row},
                     turned - col * height - begin_row,
                     height};
    run_blocks<Exact<T>>(product, col, col + cols, begin_row, end_row, scratch + kTurnedSize<T>);
    for (Index at = 0; at < cols; at += kFinishColumns) {
      const Index some = at_most(kFinishColumns, cols - at);
      transpose(turned + at * height, height, some, height, args.c_row,
                static_cast<T*>(args.c) + begin_row * args.c_row + col + at);
      finish<T>(args, begin_row, height, col + at, some);
    }
  }
}

template <class T>
void run(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col,
         void* scratch) {
  if (takes_dots<T>(args)) {
    run_dots<T>(args, begin_row, end_row, begin_col, end_col);
  } else if (kFindsZeros && args.zeros == Zeros::rows) {
    run_listed_rows<T>(args, begin_row, end_row, begin_col, end_col, static_cast<T*>(scratch));
  } else if (kFindsZeros && args.zeros == Zeros::columns && finite_rows<T>(args, begin_row, end_row)) {
    run_listed_columns<T>(args, begin_row, end_row, begin_col, end_col, static_cast<T*>(scratch));
  } else if (!args.packed_b && pays_turned<T>(args, end_row - begin_row, end_col - begin_col)) {
    run_turned(args, begin_row, end_row, begin_col, end_col, static_cast<T*>(scratch));
  } else {
    run_blocks<Exact<T>>(args, begin_row, end_row, begin_col, end_col, scratch);
  }
}

// See GemmKernels.
template <class T>
void finish_rows(const GemmArgs& args, Index begin_row, Index end_row) {
  finish_all<T>(args, begin_row, end_row - begin_row, 0, args.n);
}

template <class T>
Zeros find_zeros_unless_dots(const GemmArgs& args) {
  return takes_dots<T>(args) ? Zeros::none : find_zeros<T>(args);
}

template <class T>
constexpr GemmKernels gemm_kernels() {
  return {run<T>,
          __is_same(T, float) ? run_bf16 : nullptr,
          kTileRows,
          kPanel<T>,
          Index(sizeof(T)) * (kDepth<T> * (kBlockColumns<T> + kBlockRows) + kTurnedSize<T>),
          packed_a_size<T>,
          pack_a<T>,
          packed_b_size<T>,
          pack_b<T>,
          find_zeros_unless_dots<T>,
          lists_bytes<T>,
          make_lists<T>,
          finish_rows<T>};
}
constexpr GemmKernels kGemm[] = {gemm_kernels<float>(), gemm_kernels<double>()};

}  // namespace

const GemmKernels* gemm_table() { return kGemm; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
