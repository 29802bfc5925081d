#include "core/batch_norm.hpp"

#include <vector>

#include "core/chunks.hpp"
#include "formulas/batch_norm.hpp"

namespace fastopt {
namespace {

constexpr Index kColumns = 512;  // most of a task
constexpr Index kMergeColumns = 64;

// What the tasks of a fold leave: two numbers for each column of each block of rows.
struct Folded {
  Index rows, columns, height, blocks;
  std::vector<double> a, b;

  double count(Index block) const { return double(std::min(rows, (block + 1) * height) - block * height); }
};

using Kernel = void (*)(const ColumnPairArgs& args, Index begin_row, Index end_row);

// The cut follows from the shape alone, so that no bit depends on the number of threads.
Folded fold(Kernel kernel, ColumnPairArgs args, Index rows, Index columns) {
  const Index width = std::min(columns, kColumns), tiles = pieces(columns, width);
  Folded folded{rows, columns, std::max<Index>(4 * kChunk / width, 1), 0, {}, {}};
  folded.blocks = std::max<Index>(pieces(rows, folded.height), 1);  // of no rows: sums that are zero
  folded.a.resize(std::size_t(folded.blocks * columns));
  folded.b.resize(std::size_t(folded.blocks * columns));
  args.columns = columns;
  parallel_for(folded.blocks * tiles, rows * columns >= kSerialElements, [&](Index task) {
    const Index block = task / tiles;
    ColumnPairArgs own = args;
    own.first = task % tiles * width;
    own.last = std::min(columns, own.first + width);
    own.a = folded.a.data() + block * columns;
    own.b = folded.b.data() + block * columns;
    kernel(own, block * folded.height, std::min(rows, (block + 1) * folded.height));
  });
  return folded;
}

// Joins the blocks pairwise: join(into, from, n_into, n_from) for numbers of one column each, and
// finish(column, a, b) with what they come to.
template <class Join, class Finish>
void merge(Folded& folded, const Join& join, const Finish& finish) {
  const Index columns = folded.columns, blocks = folded.blocks;
  run_chunks(columns, kMergeColumns, columns * blocks, [&](Index begin, Index end) {
    for (Index apart = 1; apart < blocks; apart *= 2)
      for (Index block = 0; block + apart < blocks; block += 2 * apart) {
        // A block that others were joined to stands for all rows up to the next such.
        double n[2] = {0.0, 0.0};
        for (int side = 0; side < 2; ++side)
          for (Index i = block + side * apart; i < std::min(block + (side + 1) * apart, blocks); ++i)
            n[side] += folded.count(i);
        const Index to = block * columns, from = (block + apart) * columns;
        for (Index c = begin; c < end; ++c)
          join(folded.a[std::size_t(to + c)], folded.b[std::size_t(to + c)], folded.a[std::size_t(from + c)],
               folded.b[std::size_t(from + c)], n[0], n[1]);
      }
    for (Index c = begin; c < end; ++c) finish(c, folded.a[std::size_t(c)], folded.b[std::size_t(c)]);
  });
}

template <class T>
void put(void* out, Index i, double value) {
  if (out) static_cast<T*>(out)[i] = T(value);
}

// f(T()) for the type of the arrays.
template <class F>
void with_type(DType dtype, const F& f) {
  dtype == DType::f32 ? f(float()) : f(double());
}

}  // namespace

void batch_statistics(DType dtype, const void* x, Index rows, Index columns, double eps,
                      const BatchSaved& saved) {
  if (columns == 0) return;
  ColumnPairArgs args{};
  args.x = x;
  Folded folded = fold(kernels().batch_norm[int(dtype)].moments, args, rows, columns);
  const auto join = [](double& mean, double& m2, double mean_from, double m2_from, double n, double n_from) {
    const Moments joined = Moments::merge({n, mean, m2}, {n_from, mean_from, m2_from});
    mean = joined.mean;
    m2 = joined.m2;
  };
  with_type(dtype, [&]<class T>(T) {
    merge(folded, join, [&](Index c, double mean, double m2) {
      const BatchStatistics kept(Moments{double(rows), mean, m2}, eps);
      put<T>(saved.mean, c, kept.mean);
      put<T>(saved.rstd, c, kept.rstd);
      put<T>(saved.var, c, kept.var);
    });
  });
}

void running_rstd(DType dtype, const void* running_var, Index columns, double eps, void* rstd) {
  with_type(dtype, [&]<class T>(T) {
    const T* const var = static_cast<const T*>(running_var);
    for (Index c = 0; c < columns; ++c) put<T>(rstd, c, reciprocal_std(double(var[c]), eps));
  });
}

void track(DType dtype, const BatchSaved& saved, Index columns, double momentum, double batches,
           void* running_mean, void* running_var) {
  const double share = batch_share(momentum, batches);
  with_type(dtype, [&]<class T>(T) {
    const auto take = [&](void* running_, const void* batch_) {
      T* const running = static_cast<T*>(running_);
      const T* const batch = static_cast<const T*>(batch_);
      for (Index c = 0; c < columns; ++c) running[c] = tracked(running[c], batch[c], share);
    };
    take(running_mean, saved.mean);
    take(running_var, saved.var);
  });
}

void batch_norm_sums(DType dtype, const void* dy, const void* x, Index rows, Index columns,
                     const BatchSaved& saved, const BatchGradients& gradients) {
  if (columns == 0) return;
  ColumnPairArgs args{};
  args.x = x;
  args.dy = dy;
  args.mean = saved.mean;
  Folded folded = fold(kernels().batch_norm[int(dtype)].grad_sums, args, rows, columns);
  const auto join = [](double& dy_sum, double& dot, double dy_from, double dot_from, double, double) {
    const GradSums joined = GradSums::merge({dy_sum, dot}, {dy_from, dot_from});
    dy_sum = joined.dy;
    dot = joined.dot;
  };
  with_type(dtype, [&]<class T>(T) {
    const T* const rstd = static_cast<const T*>(saved.rstd);
    merge(folded, join, [&](Index c, double dy_sum, double dot) {
      const GradTerms terms({dy_sum, dot}, double(rows), double(rstd[c]));
      put<T>(gradients.weight, c, terms.dweight);
      put<T>(gradients.bias, c, terms.dbias);
      put<T>(gradients.center, c, terms.center);
      put<T>(gradients.slope, c, terms.slope);
    });
  });
}

}  // namespace fastopt
