// Products that leave out steps of k at which an operand is zero. Their sums are those of the blocks,
// step for step, so that no bit depends on what is left out.
#pragma once

#include "cpu/blocks.hpp"
#include "cpu/zeros.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// Few rows share a list, so a tile is as wide as registers allow.
constexpr int kListedVectors = kVectorRegisters == 32 ? 8 : 4;
template <class T>
constexpr Index kListedWidth = kListedVectors * Simd<T>::size;  // of tiles of kListedRows
// Of kListedColumns columns a tile has as many sums, so half as many vectors.
constexpr int kTurnedVectors = kListedVectors / 2;
template <class T>
constexpr Index kTurnedWidth = kTurnedVectors * Simd<T>::size;
constexpr Index kMostLists = 128;

template <class T>
struct ListedArgs {
  const Step* steps;
  Index count;
  const T* a;
  Index a_row, a_step;
  const T* b;
  Index b_step, b_pair;  // every two vectors of a step are b_pair apart
  T* c;
  Index c_row;
  int rows;       // of C to write, at most the tile's
  Index columns;  // the same
  T beta;
};

template <class T, int Rows, int Vectors>
static void listed_tile(const ListedArgs<T>& args) {
  constexpr Index W = Simd<T>::size;
  Vector<T> sum[Rows][Vectors];
  add_steps(args.steps, args.count, args.a, args.a_row, args.a_step, args.b, args.b_step, W, args.b_pair,
            sum);
  store_sums(sum, args.c, args.c_row, args.rows, args.columns, args.beta);
}

// A tile as wide as C's columns, by recursion over the number of vectors.
template <class T, int Rows, int Vectors>
FO_HD void run_listed(const ListedArgs<T>& args) {
  if constexpr (Vectors > 1)
    if (args.columns <= (Vectors - 1) * Simd<T>::size) return run_listed<T, Rows, Vectors - 1>(args);
  listed_tile<T, Rows, Vectors>(args);
}

// Which operand is zero often enough, by a glance at a few places of it.
template <class T>
Zeros find_zeros(const GemmArgs& args) {
  constexpr Index kLeast = 32, kGlances = 8, kLook = 64, kSteps = 8;
  const T *const a = static_cast<const T*>(args.a.data), *const b = static_cast<const T*>(args.b.data);
  const Index k = args.k;
  if (!kFindsZeros || args.bf16 || k < kLeast || args.m < kListedColumns || args.n < kPanel<T>)
    return Zeros::none;
  Index left = 0, seen = 0;
  if (args.a.col == 1 && args.b.col != 1) {
    const Index d = at_most(k, kLook);
    Step steps[kLook + 16];
    for (Index i = 0; i < kGlances; ++i, seen += d) {
      const Index row = (args.m - kListedRows) * i / kGlances, p = (k - d) * i / (kGlances - 1);
      left += steps_of_rows(a + row * args.a.row + p, args.a.row, kListedRows, d, steps);
    }
    return worth_leaving_out(left, seen) ? Zeros::rows : Zeros::none;
  }
  if (args.b.col != 1 || args.a.row != 1) return Zeros::none;
  for (Index i = 0; i < kGlances; ++i, seen += kSteps * kZeroLists<T>) {
    const Index col = (args.n - kZeroLanes<T>)*i / kGlances, p = (k - kSteps) * i / (kGlances - 1);
    for (Index s = p; s < p + kSteps; ++s)
      for (unsigned mask = nonzero_lanes(b + s * args.b.row + col); mask; mask >>= kListedColumns)
        left += (mask & kList) != 0;
  }
  return worth_leaving_out(left, seen) ? Zeros::columns : Zeros::none;
}

// Rows of A that are often zero, by a B that lies across.
template <class T>
void run_listed_rows(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col,
                     T* scratch) {
  constexpr Index N = kPanel<T>;
  const Index blocks = blocks_of(args.k, kDepth<T>), depth = block_depth<T>(args.k);
  T* const room = scratch;
  Step* const steps = reinterpret_cast<Step*>(room + depth * kListedWidth<T>);
  Index counts[kMostLists];
  Product<Exact<T>> product{args, nullptr, room, depth, false, true};
  for (Index row = begin_row; row < end_row; row += kMostLists * kListedRows) {
    const Index rows = at_most(kMostLists * kListedRows, end_row - row);
    for (Index block = 0; block < blocks; ++block) {
      const Index p = block * depth, d = at_most(depth, args.k - p);
      for (Index i = 0; i < rows; i += kListedRows)
        counts[i / kListedRows] =
            steps_of_rows(product.a(row + i, p), args.a.row, at_most(kListedRows, rows - i), d,
                          steps + i / kListedRows * depth);
      Index cols = 0;
      for (Index col = begin_col; col < end_col; col += cols) {
        cols = at_most(kListedWidth<T>, end_col - col);
        if (args.packed_b)
          product.packed_b = const_cast<T*>(static_cast<const T*>(args.packed_b)) +
                             packed_b_at<T>(args.n, block, col, depth);
        else
          product.fill_b(col, cols, 0, p, d);
        bool finite = true;
        for (Index j = 0; j < cols && finite; j += N)
          finite = all_finite(product.packed_b + j * depth, 0, 1, d * N);
        if (finite) {
          for (Index i = 0; i < rows; i += kListedRows) {
            const int tile = int(at_most(kListedRows, rows - i));
            run_listed<T, kListedRows, kListedVectors>(
                {steps + i / kListedRows * depth, counts[i / kListedRows], product.a(row + i, p),
                 tile > 1 ? args.a.row : 0, 1, product.packed_b, N, depth * N, product.c(row + i, col),
                 args.c_row, tile, cols, p == 0 ? T(args.beta) : T(1)});
          }
        } else {
          for (Index j = 0; j < cols; j += N)
            product.multiply(row, rows, col + j, j, at_most(N, cols - j), p, d);
        }
        if (block == blocks - 1) finish<T>(args, row, rows, col, cols);
      }
    }
  }
}

// The transpose of a tile's sums, `lanes` of them side by side, to C.
template <class T>
void store_turned(const T* sums, Index lanes, Index rows, T beta, T* c, Index c_row) {
  if (beta == T(0)) return transpose(sums, kTurnedWidth<T>, lanes, rows, c_row, c);
  alignas(64) T turned[kTurnedWidth<T> * kZeroLanes<T>];
  transpose(sums, kTurnedWidth<T>, lanes, rows, kZeroLanes<T>, turned);
  for (Index i = 0; i < rows; ++i)
    for (Index l = 0; l < lanes; ++l)
      c[i * c_row + l] = fma(beta, c[i * c_row + l], turned[i * kZeroLanes<T> + l]);
}

// Lists of the columns [begin, end) of B, of a block of k: each its length and then the steps.
template <class T>
void list_columns(const Product<Exact<T>>& product, Index begin, Index end, Index p, Index d, Step* lists) {
  const Index room = list_room(product.depth);
  for (Index col = begin; col < end; col += kZeroLanes<T>, lists += kZeroLists<T> * room) {
    Index counts[kZeroLists<T>];
    steps_of_lanes(product.b(p, col), product.args.b.row, d, room, lists + 1, counts);
    for (int l = 0; l < kZeroLists<T>; ++l) lists[l * room] = Step(counts[l]);
  }
}

// Where lists for all runs have that of a column, of a block of k.
FO_HD Index list_at(const GemmArgs& args, Index block, Index col, Index depth) {
  return (block * (args.n / kListedColumns) + col / kListedColumns) * list_room(depth);
}

// See GemmKernels.
template <class T>
Index lists_bytes(const GemmArgs& args) {
  const Index blocks = blocks_of(args.k, kDepth<T>);
  return args.zeros == Zeros::columns ? list_at(args, blocks, 0, block_depth<T>(args.k)) * Index(sizeof(Step))
                                      : 0;
}

// See GemmKernels.
template <class T>
void make_lists(const GemmArgs& args, Index begin_col, Index end_col, void* lists) {
  const Index blocks = blocks_of(args.k, kDepth<T>), depth = block_depth<T>(args.k);
  const Index end = begin_col + (end_col - begin_col) / kZeroLanes<T> * kZeroLanes<T>;
  const Product<Exact<T>> product{args, nullptr, nullptr, depth, false, false};
  for (Index block = 0; block < blocks; ++block) {
    const Index p = block * depth;
    list_columns(product, begin_col, end, p, at_most(depth, args.k - p),
                 static_cast<Step*>(lists) + list_at(args, block, begin_col, depth));
  }
}

// Columns of B that are often zero, by a finite A whose columns lie side by side: a step's elements of A are
// the vectors, and the sums are those of C's transpose.
template <class T>
void run_listed_columns(const GemmArgs& args, Index begin_row, Index end_row, Index begin_col, Index end_col,
                        T* scratch) {
  constexpr Index G = kZeroLanes<T>, P = kListedColumns, kWidth = kTurnedWidth<T>, W = Simd<T>::size;
  const Index blocks = blocks_of(args.k, kDepth<T>), depth = block_depth<T>(args.k);
  const Index end = begin_col + (end_col - begin_col) / G * G;
  T* const packed = scratch;
  Step* const own = reinterpret_cast<Step*>(packed + depth * kWidth);
  alignas(64) T sums[G * kWidth];
  const Product<Exact<T>> product{args, nullptr, nullptr, depth, false, false};
  for (Index left = begin_col; left < end; left += kMostLists * P) {
    const Index right = at_most(end, left + kMostLists * P);
    for (Index block = 0; block < blocks; ++block) {
      const Index p = block * depth, d = at_most(depth, args.k - p);
      const Step* lists = own;
      if (args.lists)
        lists = static_cast<const Step*>(args.lists) + list_at(args, block, left, depth);
      else
        list_columns(product, left, right, p, d, own);
      for (Index row = begin_row; row < end_row; row += kWidth) {
        const Index rows = at_most(kWidth, end_row - row), width = (rows + W - 1) / W * W;
        pack_panel<T>(product.a(row, p), 1, args.a.col, rows, d, kWidth, packed);
        const Step* list = lists;
        for (Index col = left; col < right; col += G) {
          for (Index i = 0; i < G; i += P, list += list_room(depth))
            run_listed<T, kListedColumns, kTurnedVectors>({list + 1, *list, product.b(p, col + i), 1,
                                                           args.b.row, packed, kWidth, 2 * W,
                                                           sums + i * kWidth, kWidth, int(P), width, T(0)});
          store_turned(sums, G, rows, p == 0 ? T(args.beta) : T(1), product.c(row, col), args.c_row);
        }
      }
    }
    finish_all<T>(args, begin_row, end_row - begin_row, left, right);
  }
  if (end < end_col) run_blocks<Exact<T>>(args, begin_row, end_row, end, end_col, scratch);
}

// Whether these rows of an A whose columns lie side by side are finite.
template <class T>
bool finite_rows(const GemmArgs& args, Index begin_row, Index end_row) {
  return all_finite(static_cast<const T*>(args.a.data) + begin_row, args.a.col, args.k, end_row - begin_row);
}

}  // namespace
}  // namespace FASTOPT_ISA
}  // namespace fastopt
