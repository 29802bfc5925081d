// The blocks of a matrix product: packed into panels that stay in cache, multiplied by register tiles.
#pragma once

#include "core/dispatch.hpp"
#include "cpu/epilogue.hpp"
#include "cpu/pack.hpp"
#include "cpu/tile.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {  // gemm.cpp and gemm_bf16.cpp are compiled with other flags

// Blocks: A's panels of a block fill half of a second-level cache of 1 MiB, B's two, which the third level
// delivers fast enough as each is read once for kBlockRows rows.
template <class T>
constexpr Index kDepth = 2048 / Index(sizeof(T));
template <class T>
constexpr Index kBlockColumns = 4096 / Index(sizeof(T));
constexpr Index kBlockRows = 264;  // a multiple of both kTileRows, and room for 256
template <class T>
constexpr Index kPanel = 2 * Simd<T>::size;
constexpr Index kPanelsTogether = 8;
// Products of no more rows or columns with a transposed B are computed along k.
constexpr int kRowsOfDots = 16;
// Of one or two rows a tile is wider, so that enough sums are under way at once.
constexpr int kWideTile = 4, kWideRows = kVectorRegisters == 32 ? 2 : 1;

FO_HD Index at_most(Index n, Index limit) { return n < limit ? n : limit; }
FO_HD Index blocks_of(Index n, Index size) { return n > size ? (n + size - 1) / size : 1; }

// Strides of whole multiples of 1 KiB map the rows of an operand to few sets of a cache.
template <class T>
FO_HD bool crowds_cache(Index stride) {
  return stride * Index(sizeof(T)) % 1024 == 0;
}

// How the elements of packed panels are multiplied. `steps` of k share an element of a panel after `convert`.
template <class T>
struct Exact {
  using Type = T;
  static constexpr Index steps = 1;
  static constexpr bool packs = false;  // whether operands must be packed
  FO_HD static Vector<T> add_product(Vector<T> x, Vector<T> y, Vector<T> sum) { return fma(x, y, sum); }
  static void convert(T*, Index, Index) {}
};

// The operands and blocks of one call, with pointers to where the next block is read and packed.
template <class Arithmetic>
struct Product {
  using T = typename Arithmetic::Type;
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
    for (Index i = 0; i < rows; i += kTileRows) {
      T* const to = packed_a + i * depth;
      pack_panel<T>(a(row + i, p), args.a.row, args.a.col, at_most(kTileRows, rows - i), d, kTileRows, to);
      Arithmetic::convert(to, d, kTileRows);
    }
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
    for (Index j = 0; j < cols; j += N) Arithmetic::convert(to + j * depth, d, N);
  }

  // Tiles of equal height where A allows it: a low one reads as much of B for fewer rows.
  Index tile_height(Index rows) const {
    const Index tiles = (rows + kTileRows - 1) / kTileRows;
    return pack_a ? kTileRows : (rows + tiles - 1) / tiles;
  }

  // One panel of columns, or several of a B that lies as it is, `at` from the block's first, by a block of
  // rows.
  void multiply(Index row, Index rows, Index col, Index at, Index cols, Index p, Index d) const {
    constexpr Index N = kPanel<T>;
    TileArgs<T> tile{};
    tile.depth = (d + Arithmetic::steps - 1) / Arithmetic::steps;
    tile.a_row = 1;
    tile.a_col = kTileRows;
    tile.b = b(p, col);
    tile.b_row = args.b.row;
    tile.c_row = args.c_row;
    tile.columns = cols;
    tile.beta = p == 0 ? T(args.beta) : T(1);
    if (pack_b || cols < N) {
      tile.b = packed_b + at * depth;
      tile.b_row = N;
    }
    if (!pack_a) {
      tile.a_row = args.a.row;
      tile.a_col = args.a.col;
    }
    if (cols == kWideTile * N) {
      run_rows<2 * kWideTile, false, kWideRows>(tile, row, rows, col, p);
    } else if (cols <= N / 2) {
      tile.a_row == 1 ? run_rows<1, true>(tile, row, rows, col, p)
                      : run_rows<1, false>(tile, row, rows, col, p);
    } else {
      tile.a_row == 1 ? run_rows<2, true>(tile, row, rows, col, p)
                      : run_rows<2, false>(tile, row, rows, col, p);
    }
  }

  // The tiles of a block of rows, one below the other.
  template <int Vectors, bool UnitRow, int Rows = kTileRows>
  void run_rows(TileArgs<T>& tile, Index row, Index rows, Index col, Index p) const {
    const Index most = tile_height(rows);
    for (Index i = 0; i < rows; i += most) {
      tile.a = pack_a ? packed_a + i * depth : a(row + i, p);
      tile.c = c(row + i, col);
      run_tile<T, Vectors, UnitRow, Rows, Arithmetic>(at_most(most, rows - i), tile);
    }
  }
};

// Blocks of k are equally deep.
template <class T>
Index block_depth(Index k) {
  const Index blocks = blocks_of(k, kDepth<T>);
  return (k + blocks - 1) / blocks;
}

// Where packed tiles or panels of `unit` lanes, of so many lanes in all, have those from `lane` on, at the
// first of one, of a block of k.
FO_HD Index packed_lanes_at(Index lanes, Index unit, Index block, Index lane, Index depth) {
  return (block * (blocks_of(lanes, unit) * unit) + lane) * depth;
}
// The same of the rows of a packed A, and of the columns of a packed B.
FO_HD Index packed_at(Index m, Index block, Index row, Index depth) {
  return packed_lanes_at(m, kTileRows, block, row, depth);
}
template <class T>
Index packed_b_at(Index n, Index block, Index col, Index depth) {
  return packed_lanes_at(n, kPanel<T>, block, col, depth);
}

// Whether A is packed for a run of so many columns.
template <class T>
bool packs_a(const GemmArgs& args, Index width) {
  constexpr Index N = kPanel<T>;
  return width >= 16 * N || (width >= 4 * N && crowds_cache<T>(args.a.row == 1 ? args.a.col : args.a.row));
}

template <class Arithmetic>
void run_blocks(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col,
                void* scratch) {
  using T = typename Arithmetic::Type;
  constexpr Index N = kPanel<T>, kWidth = kBlockColumns<T>;
  const Index blocks = blocks_of(args.k, kDepth<T>), depth = block_depth<T>(args.k);
  const Index height = end_row - begin_row, width = end_col - begin_col;
  T* const packed_b = static_cast<T*>(scratch);
  const bool pack_a = Arithmetic::packs || args.packed_a || packs_a<T>(args, width);
  const bool pack_b = Arithmetic::packs || args.b.col != 1 || height > 160 ||
                      (height > 2 * kTileRows && crowds_cache<T>(args.b.row));
  T* const packed_rows = packed_b + depth * kWidth;
  T* const whole_a = const_cast<T*>(static_cast<const T*>(args.packed_a));
  T* const whole_b = const_cast<T*>(static_cast<const T*>(args.packed_b));
  Product<Arithmetic> product{args, packed_rows, packed_b, depth, pack_a, pack_b};
  const bool wide = !pack_b && height <= kWideRows;
  // Rows are cut evenly, in whole tiles.
  const Index tiles = (height + kTileRows - 1) / kTileRows, cuts = blocks_of(tiles, kBlockRows / kTileRows);
  const Index block_rows = (tiles + cuts - 1) / cuts * kTileRows;
  const Index group = args.b.col == 1 ? kPanelsTogether * N : N;
  for (Index left = begin_col; left < end_col; left += kWidth) {
    const Index right = at_most(end_col, left + kWidth), whole = left + (right - left) / N * N;
    for (Index block = 0; block < blocks; ++block) {
      const Index p = block * depth, d = at_most(depth, args.k - p);
      for (Index row = begin_row; row < end_row; row += block_rows) {
        const Index rows = at_most(block_rows, end_row - row);
        if (whole_a) {
          product.packed_a = whole_a + packed_at(args.m, block, row, depth);
        } else if (pack_a) {
          product.fill_a(row, rows, p, d);
        }
        Index cols = 0;
        for (Index col = left; col < right; col += cols) {
          // Columns that no further rows follow for are packed over the ones before, still in cache.
          const Index at = whole_b ? 0 : rows == height ? (col - left) % group : col - left;
          cols = wide && right - col >= kWideTile * N ? kWideTile * N : at_most(N, right - col);
          if (whole_b)
            product.packed_b = whole_b + packed_b_at<T>(args.n, block, col, depth);
          else if (row == begin_row && (product.pack_b ? at % group == 0 : col == whole))
            product.fill_b(col, product.pack_b ? at_most(group, right - col) : cols, at, p, d);
          product.multiply(row, rows, col, at, cols, p, d);
          if (block == blocks - 1) finish<T>(args, row, rows, col, cols);
        }
      }
    }
  }
}

}  // namespace
}  // namespace FASTOPT_ISA
}  // namespace fastopt
