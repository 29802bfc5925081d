// Reductions of the columns of a matrix: a block takes a tile of neighbouring columns and a band of rows, a
// thread one column of every so many rows. The cut follows from the shape alone.
#pragma once

#include "cuda/reductions.cuh"

namespace fastopt {
inline namespace FASTOPT_ISA {

struct ColumnTiles {
  static constexpr Index kWidest = 32, kShortest = 256, kMostBands = 64;
  Index rows, columns, width, tiles, height, bands;

  ColumnTiles(Index rows_, Index columns_) : rows(rows_), columns(columns_) {
    width = columns < kWidest ? columns : kWidest;
    tiles = (columns + width - 1) / width;
    height = (rows + kMostBands - 1) / kMostBands;
    height = height < kShortest ? kShortest : height;
    bands = rows > height ? (rows + height - 1) / height : 1;
  }
};
constexpr Index kCounts = Parts::kHead / sizeof(unsigned);

// The parts of the threads of each column, joined in `parts`; for the first `width` threads.
template <class Fold, class Part = typename Fold::Part>
__device__ Part merge_rows(const Part& part, Part* parts, Index width) {
  parts[threadIdx.x] = part;
  for (Index lanes = kThreads / width, half; lanes > 1; lanes = half) {
    half = (lanes + 1) / 2;
    __syncthreads();
    if (threadIdx.x < (lanes - half) * width)
      parts[threadIdx.x] = Fold::merge(parts[threadIdx.x], parts[threadIdx.x + half * width]);
  }
  return parts[threadIdx.x];
}

// What another block has left: doubles, read past this block's own cache.
template <class Part>
__device__ Part fetch(const Part* from) {
  constexpr int kSize = sizeof(Part) / sizeof(double);
  const volatile double* const numbers = reinterpret_cast<const double*>(from);
  Part part;
  for (int i = 0; i < kSize; ++i) reinterpret_cast<double*>(&part)[i] = numbers[i];
  return part;
}

// fold.over(cut, column, first, last, step): the Part, some doubles, of every so manieth row;
// fold.leave(column, part): what becomes of all of them. Tiles with the same remainder by kCounts share a
// count; the last of their blocks joins the bands.
template <class Fold>
__global__ void __launch_bounds__(kThreads) fold_columns_kernel(Fold fold, ColumnTiles cut, Parts parts) {
  using Part = typename Fold::Part;
  __shared__ Part own[kThreads];
  const Index tile = blockIdx.x % cut.tiles, band = blockIdx.x / cut.tiles;
  const Index lanes = kThreads / cut.width, lane = threadIdx.x / cut.width;
  const Index column = tile * cut.width + threadIdx.x % cut.width;
  const Index first = band * cut.height, last = first + cut.height < cut.rows ? first + cut.height : cut.rows;
  Part part{};
  if (lane < lanes && column < cut.columns) part = fold.over(cut, column, first + lane, last, lanes);
  part = merge_rows<Fold>(part, own, cut.width);
  const bool owner = threadIdx.x < cut.width && column < cut.columns;
  if (cut.bands == 1) {
    if (owner) fold.leave(column, part);
    return;
  }
  Part* const bands = reinterpret_cast<Part*>(parts.at);
  if (owner) bands[band * cut.columns + column] = part;
  const Index group = tile % kCounts, members = (cut.tiles - group + kCounts - 1) / kCounts;
  if (!is_last(parts.done + group, unsigned(members * cut.bands))) return;
  for (Index i = threadIdx.x; i < members * cut.width; i += kThreads) {
    const Index c = (i / cut.width * kCounts + group) * cut.width + i % cut.width;
    if (c >= cut.columns) continue;
    Part total{};
    for (Index b = 0; b < cut.bands; ++b) total = Fold::merge(total, fetch(bands + b * cut.columns + c));
    fold.leave(c, total);
  }
}

inline Index fold_scratch_bytes(Index rows, Index columns, std::size_t part) {
  if (columns == 0) return Parts::kHead;
  const ColumnTiles cut(rows, columns);
  return Parts::kHead + (cut.bands > 1 ? Index(part) * cut.bands * columns : 0);
}

template <class Fold>
void fold_columns(const Fold& fold, Index rows, Index columns, void* scratch, CudaStream stream) {
  if (columns == 0) return;
  const ColumnTiles cut(rows, columns);
  launch(fold_columns_kernel<Fold>, cut.tiles * cut.bands, kThreads, 0, stream, fold, cut, Parts(scratch));
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
