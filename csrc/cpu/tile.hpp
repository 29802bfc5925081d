// Register tiles of the gemm driver: a block of C whose sums stay in registers while k runs.
#pragma once

#include "core/array.hpp"
#include "cpu/vector.hpp"

// The sums must stay in registers, so every loop over them is unrolled whole.
#define FO_UNROLL _Pragma("GCC unroll 16")

namespace fastopt {
inline namespace FASTOPT_ISA {

// A tile of kTileRows x 2 vectors leaves room for two vectors of B and an element of A.
inline constexpr int kTileRows = kVectorRegisters == 32 ? 12 : 6;

// The sums of the first `rows` rows and `columns` columns of a tile, to C.
template <class T, int Rows, int Vectors>
FO_HD void store_sums(Vector<T> (&sum)[Rows][Vectors], T* c, Index c_row, int rows, Index columns, T beta) {
  constexpr int W = Simd<T>::size;
  // A sum that underflowed may be -0, which a product with zero would have made +0.
  FO_UNROLL
  for (int i = 0; i < Rows; ++i) {
    FO_UNROLL
    for (int j = 0; j < Vectors; ++j) sum[i][j] += Vector<T>{};
  }
  if (columns < Vectors * W) {
    T room[Rows][Vectors * W];
    FO_UNROLL
    for (int i = 0; i < Rows; ++i) {
      FO_UNROLL
      for (int j = 0; j < Vectors; ++j) store_vector(room[i] + j * W, sum[i][j]);
    }
    for (int i = 0; i < rows; ++i, c += c_row)
      for (Index j = 0; j < columns; ++j) c[j] = beta == T(0) ? room[i][j] : fma(beta, c[j], room[i][j]);
    return;
  }
  const Vector<T> scale = broadcast(beta);
  FO_UNROLL
  for (int i = 0; i < Rows; ++i) {
    if (i == rows) return;
    if (beta == T(0)) {
      FO_UNROLL
      for (int j = 0; j < Vectors; ++j) store_vector(c + j * W, sum[i][j]);
    } else {
      FO_UNROLL
      for (int j = 0; j < Vectors; ++j)
        store_vector(c + j * W, fma(scale, load_vector(c + j * W), sum[i][j]));
    }
    c += c_row;
  }
}

// `depth` steps of k of one tile. A lies as it is; B's rows are b_row apart, each `Vectors` vectors long.
template <class T>
struct TileArgs {
  Index depth;
  const T* a;
  Index a_row, a_col;
  const T* b;
  Index b_row;
  T* c;
  Index c_row, columns;  // of C to write, at most the tile's
  T beta;                // 0: C is not read
};

template <class T, int Rows, int Vectors, bool UnitRow, class Arithmetic>
static void tile(const TileArgs<T>& args) {
  constexpr int W = Simd<T>::size;
  const T *a = args.a, *b = args.b;
  T* const c = args.c;
  const Index a_row = UnitRow ? 1 : args.a_row, a_col = args.a_col, b_row = args.b_row, c_row = args.c_row;
  if (args.beta != T(0))
    for (int i = 0; i < Rows; ++i)
      for (int j = 0; j < Vectors * W; j += 64 / int(sizeof(T))) __builtin_prefetch(c + i * c_row + j, 1);
  Vector<T> sum[Rows][Vectors];
  FO_UNROLL
  for (int i = 0; i < Rows; ++i) {
    FO_UNROLL
    for (int j = 0; j < Vectors; ++j) sum[i][j] = Vector<T>{};
  }
  for (Index p = 0; p < args.depth; ++p, a += a_col, b += b_row) {
    Vector<T> v[Vectors];
    FO_UNROLL
    for (int j = 0; j < Vectors; ++j) v[j] = load_vector(b + j * W);
    FO_UNROLL
    for (int i = 0; i < Rows; ++i) {
      const Vector<T> x = broadcast(a[i * a_row]);
      FO_UNROLL
      for (int j = 0; j < Vectors; ++j) sum[i][j] = Arithmetic::add_product(x, v[j], sum[i][j]);
    }
  }
  store_sums(sum, c, c_row, Rows, args.columns, args.beta);
}

// A tile of 1 ... Rows rows, by recursion over the number.
template <class T, int Vectors, bool UnitRow, int Rows, class Arithmetic>
FO_HD void run_tile(Index rows, const TileArgs<T>& args) {
  if constexpr (Rows == 1) {
    tile<T, 1, Vectors, UnitRow, Arithmetic>(args);
  } else {
    if (rows == Rows) return tile<T, Rows, Vectors, UnitRow, Arithmetic>(args);
    run_tile<T, Vectors, UnitRow, Rows - 1, Arithmetic>(rows, args);
  }
}

// Products along k, of operands both contiguous there: sixteen lanes of a sum (of double: eight), the same on
// every instruction set, merged in a fixed tree.
template <class T>
struct DotArgs {
  Index depth;
  const T* a;
  Index a_row;
  const T* b;
  Index b_col;
  T* c;
  Index c_row;
  T beta;
};

template <class T>
inline constexpr int kDotLanes = 64 / int(sizeof(T));

template <class T>
FO_HD T fold_lanes(T* lane) {
  FO_UNROLL
  for (int half = kDotLanes<T> / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

template <class T, int Rows, int Columns>
static void dot_tile(const DotArgs<T>& args) {
  constexpr int W = Simd<T>::size, L = kDotLanes<T>, V = L / W;
  Vector<T> sum[Rows][Columns][V];
  FO_UNROLL
  for (int i = 0; i < Rows; ++i) {
    FO_UNROLL
    for (int j = 0; j < Columns; ++j) {
      FO_UNROLL
      for (int v = 0; v < V; ++v) sum[i][j][v] = Vector<T>{};
    }
  }
  const auto step = [&](const T* a, Index a_row, const T* b, Index b_col) __attribute__((always_inline)) {
    FO_UNROLL
    for (int v = 0; v < V; ++v) {
      Vector<T> x[Rows];
      FO_UNROLL
      for (int i = 0; i < Rows; ++i) x[i] = load_vector(a + i * a_row + v * W);
      FO_UNROLL
      for (int j = 0; j < Columns; ++j) {
        const Vector<T> y = load_vector(b + j * b_col + v * W);
        FO_UNROLL
        for (int i = 0; i < Rows; ++i) sum[i][j][v] = fma(x[i], y, sum[i][j][v]);
      }
    }
  };
  Index p = 0;
  for (; p + L <= args.depth; p += L) step(args.a + p, args.a_row, args.b + p, args.b_col);
  if (const Index rest = args.depth - p; rest) {
    T a[Rows][L] = {}, b[Columns][L] = {};
    for (int i = 0; i < Rows; ++i)
      for (Index l = 0; l < rest; ++l) a[i][l] = args.a[i * args.a_row + p + l];
    for (int j = 0; j < Columns; ++j)
      for (Index l = 0; l < rest; ++l) b[j][l] = args.b[j * args.b_col + p + l];
    step(a[0], L, b[0], L);
  }
  for (int i = 0; i < Rows; ++i) {
    T* c = args.c + i * args.c_row;
    for (int j = 0; j < Columns; ++j) {
      alignas(64) T lane[L];
      for (int v = 0; v < V; ++v) store_vector(lane + v * W, sum[i][j][v]);
      const T total = fold_lanes<T>(lane);
      c[j] = args.beta == T(0) ? total : fma(args.beta, c[j], total);
    }
  }
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
