// The batch norm driver: moments of columns, sums for their gradients, and the passes that normalise.
//
// Columns are taken in tiles whose numbers stay on the stack. Rows of few columns are taken several at a
// time, so that the inner loops stay long.
#include "formulas/batch_norm.hpp"

#include "core/dispatch.hpp"
#include "cpu/loops.hpp"
#include "cpu/stream.hpp"
#include "cpu/table.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

constexpr Index kTile = 256;  // most elements of a tile
constexpr int kTogether = 4;  // rows of a tile that are summed before they are added

// The columns [first, last) of a matrix, tile by tile: fill(column, width, to) puts the numbers of the
// columns from `column` on at `to` of the tile's, run(at, n, stride, runs) works on so many runs of n
// elements, the first at `at`, the next `stride` further, and end(column, width, repeats) comes last.
template <class Fill, class Run, class End>
FO_HD void for_tiles(Index columns, Index first, Index last, Index begin_row, Index end_row, const Fill& fill,
                     const Run& run, const End& end) {
  const bool narrow = last - first == columns && columns <= kTile / 2;
  const Index repeats = narrow ? kTile / columns : 1, rows = end_row - begin_row;
  const Index runs = rows / repeats, done = runs * repeats;
  for (Index column = first; column < last; column += kTile) {
    const Index width = at_most(last - column, kTile), at = begin_row * columns + column;
    for (Index r = 0; r < repeats; ++r) fill(column, width, r * columns);
    run(at, repeats * width, repeats * columns, runs);
    run(at + done * columns, width, columns, rows - done);
    end(column, width, repeats);
  }
}

// Two sums for each element of a tile.
struct Pairs {
  alignas(64) double a[kTile], b[kTile];

  FO_HD void clear() {
    for (Index j = 0; j < kTile; ++j) a[j] = b[j] = 0.0;
  }
  // Adds those of further rows of the tile to the first.
  FO_HD void join(Index width, Index repeats) {
    for (Index r = 1; r < repeats; ++r) {
      FO_INDEPENDENT
      for (Index j = 0; j < width; ++j) {
        a[j] += a[r * width + j];
        b[j] += b[r * width + j];
      }
    }
  }
};

// Adds u and u v of `Rows` runs, v being x - shift, and u the same or dy.
template <int Rows, bool Squares, class T>
[[gnu::noinline]] void push(const T* x, const T* dy, Index stride, const double* shift, Index n,
                            Pairs& pairs) {
  FO_INDEPENDENT
  for (Index j = 0; j < n; ++j) {
    double a = 0.0, b = pairs.b[j];
    for (int r = 0; r < Rows; ++r) {
      const double v = double(x[r * stride + j]) - shift[j];
      const double u = Squares ? v : double(dy[r * stride + j]);
      a += u;
      b = fma(u, v, b);
    }
    pairs.a[j] += a;
    pairs.b[j] = b;
  }
}

template <bool Squares, class T>
void fold(const ColumnPairArgs& args, Index begin_row, Index end_row) {
  const T* x = static_cast<const T*>(args.x);
  const T* dy = Squares ? x : static_cast<const T*>(args.dy);
  const T* from = Squares ? x + begin_row * args.columns : static_cast<const T*>(args.mean);
  const double rows = double(end_row - begin_row);
  double shift[kTile];
  Pairs pairs;
  pairs.clear();
  for_tiles(
      args.columns, args.first, args.last, begin_row, end_row,
      [&](Index column, Index width, Index to) {
        for (Index j = 0; j < width; ++j) shift[to + j] = double(from[column + j]);
      },
      [&](Index at, Index n, Index stride, Index runs) {
        Index r = 0;
        for (; r + kTogether <= runs; r += kTogether)
          push<kTogether, Squares>(x + at + r * stride, dy + at + r * stride, stride, shift, n, pairs);
        for (; r < runs; ++r)
          push<1, Squares>(x + at + r * stride, dy + at + r * stride, stride, shift, n, pairs);
      },
      [&](Index column, Index width, Index repeats) {
        pairs.join(width, repeats);
        for (Index j = 0; j < width; ++j) {
          double a = pairs.a[j], b = pairs.b[j];
          if constexpr (Squares) {
            const Moments m = Moments::of(rows, shift[j], a, b);
            a = m.mean;
            b = m.m2;
          }
          args.a[column + j] = a;
          args.b[column + j] = b;
        }
        pairs.clear();
      });
}

template <class T>
FO_HD void copy_or_zero(const void* from, Index column, Index width, T* to) {
  for (Index j = 0; j < width; ++j) to[j] = from ? static_cast<const T*>(from)[column + j] : T(0);
}

// Mean and scale of a tile's columns.
template <class T>
struct Channels {
  alignas(64) T mean[kTile], scale[kTile];

  template <class Args>
  FO_HD void fill(const Args& args, Index column, Index width, Index to) {
    const T* const weight = static_cast<const T*>(args.weight);
    copy_or_zero(args.mean, column, width, mean + to);
    copy_or_zero(args.rstd, column, width, scale + to);
    for (Index j = 0; weight && j < width; ++j) scale[to + j] *= weight[column + j];
  }
};

// The loops are functions of their own: each is needed in several places, but once in the code.
template <class T>
[[gnu::noinline]] void normalize_run(const T* x, const T* mean, const T* scale, const T* shift, T* y,
                                     Index n) {
  FO_INDEPENDENT
  for (Index j = 0; j < n; ++j) y[j] = normalized(x[j], mean[j], scale[j], shift[j]);
}

template <class T>
void normalize(const BatchNormArgs& args, Index begin_row, Index end_row) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  Channels<T> channels;
  alignas(64) T shift[kTile];
  for_tiles(
      args.columns, 0, args.columns, begin_row, end_row,
      [&](Index column, Index width, Index to) {
        channels.fill(args, column, width, to);
        copy_or_zero(args.bias, column, width, shift + to);
      },
      [&](Index at, Index n, Index stride, Index runs) {
        for (; runs > 0; --runs, at += stride)
          write_row(y + at, n, args.stream, [&](Index from, Index m, T* out) {
            normalize_run(x + at + from, channels.mean + from, channels.scale + from, shift + from, out, m);
          });
      },
      [](Index, Index, Index) {});
  if (args.stream) stream_end();
}

template <class T>
[[gnu::noinline]] void normalize_grad_run(const T* dy, const T* x, const T* mean, const T* center,
                                          const T* slope, const T* scale, T* dx, Index n) {
  FO_INDEPENDENT
  for (Index j = 0; j < n; ++j) dx[j] = normalized_grad(dy[j], x[j], mean[j], center[j], slope[j], scale[j]);
}

template <class T>
void normalize_grad(const BatchNormGradArgs& args, Index begin_row, Index end_row) {
  const T *dy = static_cast<const T*>(args.dy), *x = static_cast<const T*>(args.x);
  T* dx = static_cast<T*>(args.dx);
  Channels<T> channels;
  alignas(64) T center[kTile], slope[kTile];
  for_tiles(
      args.columns, 0, args.columns, begin_row, end_row,
      [&](Index column, Index width, Index to) {
        channels.fill(args, column, width, to);
        copy_or_zero(args.center, column, width, center + to);
        copy_or_zero(args.slope, column, width, slope + to);
      },
      [&](Index at, Index n, Index stride, Index runs) {
        for (; runs > 0; --runs, at += stride)
          write_row(dx + at, n, args.stream, [&](Index from, Index m, T* out) {
            normalize_grad_run(dy + at + from, x + at + from, channels.mean + from, center + from,
                               slope + from, channels.scale + from, out, m);
          });
      },
      [](Index, Index, Index) {});
  if (args.stream) stream_end();
}

template <class T>
constexpr BatchNormKernels kernels_of() {
  return {fold<true, T>, fold<false, T>, normalize<T>, normalize_grad<T>};
}
constexpr BatchNormKernels kBatchNorm[] = {kernels_of<float>(), kernels_of<double>()};

}  // namespace

const BatchNormKernels* batch_norm_table() { return kBatchNorm; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
