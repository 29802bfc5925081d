// The gemm driver: C = epilogue(A B + beta C). Blocks of B and, where it pays, of A are packed into panels
// that stay in cache; register tiles multiply them; the epilogue runs over what is still in the first-level
// cache. Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008; Van Zee and van de
// Geijn, BLIS, 2015.
//
// k is cut into blocks of equal length; each is summed from zero, one step after the other, and added to C.
// Both follow from k alone, and so do the bits of C.
#include "core/dispatch.hpp"
#include "cpu/epilogue.hpp"
#include "cpu/pack.hpp"
#include "cpu/table.hpp"
#include "cpu/tile.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// Blocks: A's panels of a block fill half of a second-level cache of 1 MiB, B's two, which the third level
// delivers fast enough as each is read once for kBlockRows rows.
template <class T>
constexpr Index kDepth = 2048 / Index(sizeof(T));
template <class T>
constexpr Index kBlockColumns = 4096 / Index(sizeof(T));
constexpr Index kBlockRows = 252;  // a multiple of both kTileRows
template <class T>
constexpr Index kPanel = 2 * Simd<T>::size;
constexpr Index kPanelsTogether = 8;
constexpr int kRowsOfDots = 16;  // products of fewer rows with a transposed B are computed along k

Index at_most(Index n, Index limit) { return n < limit ? n : limit; }
Index blocks_of(Index n, Index size) { return n > size ? (n + size - 1) / size : 1; }

// Strides of whole multiples of 1 KiB map the rows of an operand to few sets of a cache.
template <class T>
bool crowds_cache(Index stride) {
  return stride * Index(sizeof(T)) % 1024 == 0;
}

// The operands and blocks of one call, with pointers to where the next block is read and packed.
template <class T>
struct Product {
  const GemmArgs& args;
  T *packed_a, *packed_b;
  Index depth;  // of a block of k
  bool pack_a, pack_b;

  const T* a(Index row, Index p) const {
    return static_cast<const T*>(args.a.data) + row * args.a.row + p * args.a.col;
  }
  const T* b(Index p, Index col) const {
    return static_cast<const T*>(args.b.data) + p * args.b.row + col * args.b.col;
  }
  T* c(Index row, Index col) const { return static_cast<T*>(args.c) + row * args.c_row + col; }

  void fill_a(Index row, Index rows, Index p, Index d) const {
    for (Index i = 0; i < rows; i += kTileRows)
      pack_panel<T>(a(row + i, p), args.a.row, args.a.col, at_most(kTileRows, rows - i), d, kTileRows,
                    packed_a + i * depth);
  }

  // Columns from `col` on, which lie `at` from the block's first.
  void fill_b(Index col, Index cols, Index at, Index p, Index d) const {
    constexpr Index N = kPanel<T>;
    T* const to = packed_b + at * depth;
    const Index whole = args.b.col == 1 ? cols / N : 0;
    for (Index panel = 0; panel < whole; panel += kPanelsTogether)
      pack_panels<T, N>(b(p, col + panel * N), args.b.row, at_most(kPanelsTogether, whole - panel), d,
                        depth * N, to + panel * depth * N);
    for (Index j = whole * N; j < cols; j += N)
      pack_panel<T>(b(p, col + j), args.b.col, args.b.row, at_most(N, cols - j), d, N, to + j * depth);
  }

  // One panel of columns, `at` from the block's first, by a block of rows.
  void multiply(Index row, Index rows, Index col, Index at, Index cols, Index p, Index d) const {
    constexpr Index N = kPanel<T>;
    TileArgs<T> tile{d, nullptr, 1, kTileRows, b(p, col), args.b.row, nullptr, args.c_row, cols, T(1)};
    if (p == 0) tile.beta = T(args.beta);
    if (pack_b || cols < N) {
      tile.b = packed_b + at * depth;
      tile.b_row = N;
    }
    if (!pack_a) {
      tile.a_row = args.a.row;
      tile.a_col = args.a.col;
    }
    for (Index i = 0; i < rows; i += kTileRows) {
      const Index height = at_most(kTileRows, rows - i);
      tile.a = pack_a ? packed_a + i * depth : a(row + i, p);
      tile.c = c(row + i, col);
      if (cols <= N / 2) {
        if (tile.a_row == 1) {
          run_tile<T, 1, true, kTileRows>(height, tile);
        } else {
          run_tile<T, 1, false, kTileRows>(height, tile);
        }
      } else {
        if (tile.a_row == 1) {
          run_tile<T, 2, true, kTileRows>(height, tile);
        } else {
          run_tile<T, 2, false, kTileRows>(height, tile);
        }
      }
    }
  }
};

template <class T>
void run_blocks(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col,
                void* scratch) {
  constexpr Index N = kPanel<T>, kWidth = kBlockColumns<T>;
  const Index blocks = blocks_of(args.k, kDepth<T>), depth = (args.k + blocks - 1) / blocks;
  const Index height = end_row - begin_row, width = end_col - begin_col;
  T* const packed_b = static_cast<T*>(scratch);
  const Product<T> product{
      args,
      packed_b + depth * kWidth,
      packed_b,
      depth,
      width >= 16 * N || (width >= 4 * N && crowds_cache<T>(args.a.row == 1 ? args.a.col : args.a.row)),
      args.b.col != 1 || height > 160 || (height > 2 * kTileRows && crowds_cache<T>(args.b.row))};
  // Rows are cut evenly, in whole tiles.
  const Index tiles = (height + kTileRows - 1) / kTileRows, cuts = blocks_of(tiles, kBlockRows / kTileRows);
  const Index block_rows = (tiles + cuts - 1) / cuts * kTileRows;
  for (Index left = begin_col; left < end_col; left += kWidth) {
    const Index right = at_most(end_col, left + kWidth), whole = left + (right - left) / N * N;
    for (Index block = 0; block < blocks; ++block) {
      const Index p = block * depth, d = at_most(depth, args.k - p);
      for (Index row = begin_row; row < end_row; row += block_rows) {
        const Index rows = at_most(block_rows, end_row - row);
        if (product.pack_a) product.fill_a(row, rows, p, d);
        for (Index col = left; col < right; col += N) {
          const Index at = col - left, cols = at_most(N, right - col), group = kPanelsTogether * N;
          if (row == begin_row && (product.pack_b ? at % group == 0 : col == whole))
            product.fill_b(col, product.pack_b ? at_most(group, right - col) : cols, at, p, d);
          product.multiply(row, rows, col, at, cols, p, d);
          if (block == blocks - 1) finish<T>(args, row, rows, col, cols);
        }
      }
    }
  }
}

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
  if (args.m <= kRowsOfDots && args.a.col == 1 && args.b.row == 1 && args.b.col != 1 &&
      args.k >= kDotLanes<T>) {
    run_dots<T>(args, begin_row, end_row, begin_col, end_col);
  } else {
    run_blocks<T>(args, begin_row, end_row, begin_col, end_col, scratch);
  }
}

template <class T>
constexpr GemmKernels gemm_kernels() {
  return {run<T>, kTileRows, kPanel<T>, Index(sizeof(T)) * kDepth<T> * (kBlockColumns<T> + kBlockRows)};
}
constexpr GemmKernels kGemm[] = {gemm_kernels<float>(), gemm_kernels<double>()};

}  // namespace

const GemmKernels* gemm_table() { return kGemm; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
