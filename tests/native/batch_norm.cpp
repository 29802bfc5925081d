// Batch normalisation at shapes around every tile and run of rows: kernels against plain loops in double, the
// whole on the pool for any number of threads.
#include "core/batch_norm.hpp"

#include "core/chunks.hpp"
#include "formulas/batch_norm.hpp"
#include "native.hpp"

namespace fastopt::test {
namespace {

constexpr Index kColumns[] = {1, 2, 3, 17, 64, 127, 128, 129, 256, 257, 520};
constexpr Index kRows[] = {2, 3, 4, 5, 9, 130, 700};

std::string on_isa(const char* what) { return std::string(kernels().isa) + " batch norm " + what; }

// Integers, whose sums are exact; the numbers of the channels.
template <class T>
struct Case {
  Index rows, columns;
  Guarded<T> x, dy, weight, bias, mean, rstd, var, center, slope;

  Case(Random& random, Index rows_, Index columns_)
      : rows(rows_),
        columns(columns_),
        x(random.integers<T>(rows * columns, 9)),
        dy(random.integers<T>(rows * columns, 9)),
        weight(random.uniforms<T>(columns, -2, 2)),
        bias(random.uniforms<T>(columns, -2, 2)),
        mean(random.integers<T>(columns, 3)),
        rstd(random.uniforms<T>(columns, 0.5, 2)),
        var(columns, T(0)),
        center(random.uniforms<T>(columns, -1, 1)),
        slope(random.uniforms<T>(columns, -1, 1)) {}

  BatchSaved saved() const { return {mean.data(), rstd.data(), var.data()}; }
};

template <class T>
const BatchNormKernels& kernel() {
  return kernels().batch_norm[int(kDType<T>)];
}

// Columns [first, last) of rows [begin, end); the other sums stay.
template <class T>
void check_folds(const Case<T>& a, bool all) {
  const Index first = all ? 0 : a.columns / 3, last = all ? a.columns : a.columns - a.columns / 5;
  const Index begin = all ? 0 : a.rows / 4, end = a.rows;
  for (const bool moments : {true, false}) {
    const Guarded<double> p(a.columns, -0.5), q(a.columns, -0.5);
    const ColumnPairArgs args{a.x.data(),
                              moments ? nullptr : a.dy.data(),
                              moments ? nullptr : a.mean.data(),
                              a.columns,
                              first,
                              last,
                              p.data(),
                              q.data()};
    (moments ? kernel<T>().moments : kernel<T>().grad_sums)(args, begin, end);
    for (Index j = 0; j < a.columns; ++j) {
      double sum = 0, other = 0;
      const double n = double(end - begin);
      for (Index i = begin; i < end; ++i) sum += double((moments ? a.x : a.dy)[i * a.columns + j]);
      const double at = moments ? sum / n : double(a.mean[j]);
      for (Index i = begin; i < end; ++i) {
        const double d = double(a.x[i * a.columns + j]) - at;
        other += d * (moments ? d : double(a.dy[i * a.columns + j]));
      }
      const bool inside = j >= first && j < last;
      check_near<double>(on_isa("first sum"), j, p[j], !inside ? -0.5 : moments ? sum / n : sum, 8, 10);
      check_near<double>(on_isa("second sum"), j, q[j], inside ? other : -0.5, 64, 100 * n);
    }
  }
}

// Rows [begin, end) of both passes, stored and streamed; those outside stay.
template <class T>
void check_passes(const Case<T>& a, bool plain) {
  const Index begin = a.rows / 4, end = a.rows - a.rows / 8;
  for (const bool stream : {false, true}) {
    const Guarded<T> y(a.x.size()), dx(a.x.size());
    const BatchNormArgs args{a.x.data(),
                             a.columns,
                             a.mean.data(),
                             a.rstd.data(),
                             plain ? nullptr : a.weight.data(),
                             plain ? nullptr : a.bias.data(),
                             y.data(),
                             stream};
    kernel<T>().normalize(args, begin, end);
    const BatchNormGradArgs grad{a.dy.data(), a.x.data(),      a.columns,      a.mean.data(), a.rstd.data(),
                                 args.weight, a.center.data(), a.slope.data(), dx.data(),     stream};
    kernel<T>().normalize_grad(grad, begin, end);
    for (Index i = 0; i < a.x.size(); ++i) {
      const Index c = i % a.columns;
      const bool inside = i / a.columns >= begin && i / a.columns < end;
      const double scale = double(a.rstd[c]) * (plain ? 1.0 : double(a.weight[c]));
      const double d = double(a.x[i]) - double(a.mean[c]);
      const double value = d * scale + (plain ? 0.0 : double(a.bias[c]));
      const double term = double(a.dy[i]) - double(a.center[c]) - d * double(a.slope[c]);
      check_near<T>(on_isa("result"), i, double(y[i]), inside ? value : 0.0, 4, 16);
      check_near<T>(on_isa("gradient"), i, double(dx[i]), inside ? scale * term : 0.0, 8, 32);
    }
  }
}

template <class T>
void check_kernels(Random& random) {
  for (const Index columns : kColumns)
    for (const Index rows : kRows) {
      const Case<T> a(random, rows, columns);
      check_folds(a, true);
      check_folds(a, false);
      check_passes(a, false);
      check_passes(a, true);
    }
}

struct Numbers {
  std::vector<double> at;
  bool operator==(const Numbers&) const = default;
};

// Statistics, what is tracked of them, and the sums of gradients.
template <class T>
Numbers whole(const Case<T>& a) {
  constexpr DType dtype = kDType<T>;
  const Guarded<T> mean(a.columns), rstd(a.columns), var(a.columns), running(a.columns, T(1)),
      running_var(a.columns, T(1)), dweight(a.columns), dbias(a.columns), center(a.columns), slope(a.columns);
  const BatchSaved saved{mean.data(), rstd.data(), var.data()};
  batch_statistics(dtype, a.x.data(), a.rows, a.columns, 0.5, saved);
  track(dtype, saved, a.columns, -1.0, 4.0, running.data(), running_var.data());
  batch_norm_sums(dtype, a.dy.data(), a.x.data(), a.rows, a.columns, saved,
                  {dweight.data(), dbias.data(), center.data(), slope.data()});
  Numbers found;
  for (const Guarded<T>* v : {&mean, &rstd, &var, &running, &running_var, &dweight, &dbias, &center, &slope})
    for (Index c = 0; c < a.columns; ++c) found.at.push_back(double((*v)[c]));
  return found;
}

template <class T>
void check_whole(Random& random, Index rows, Index columns) {
  const Case<T> a(random, rows, columns);
  const Numbers found = whole(a);
  const double n = double(rows);
  for (Index c = 0; c < columns; ++c) {
    double sum = 0, squares = 0, dot = 0, dy = 0;  // exact
    for (Index i = 0; i < rows; ++i) {
      const double v = double(a.x[i * columns + c]), g = double(a.dy[i * columns + c]);
      sum += v, squares += v * v, dot += v * g, dy += g;
    }
    squares = (n * squares - sum * sum) / n;
    dot = (n * dot - sum * dy) / n;
    const double rstd = 1 / std::sqrt(squares / n + 0.5), var = squares / (n - 1);
    const double want[] = {sum / n,    rstd, var,    0.75 + 0.25 * sum / n, 0.75 + 0.25 * var,
                           dot * rstd, dy,   dy / n, dot * rstd * rstd / n};
    for (std::size_t k = 0; k < std::size(want); ++k)
      check_near<T>(on_isa("whole"), Index(k), found.at[k * std::size_t(columns) + std::size_t(c)], want[k],
                    8, k == 5 ? 10 * n : 10);
  }
  ChangingThreads changing;
  for (int repeat = 0; repeat < 5; ++repeat) CHECK(whole(a) == found);
}

// Parts of very different sizes, some of them empty.
void check_moments() {
  const Moments none{0, 0, 0}, some = Moments::of(3, 5, 6, 14);  // of 6, 7 and 8
  CHECK(some.mean == 7 && some.m2 == 2);
  for (const Moments& joined : {Moments::merge(some, none), Moments::merge(none, some)})
    CHECK(joined.n == 3 && joined.mean == 7 && joined.m2 == 2);
  const Moments both = Moments::merge(some, Moments::of(1, 3, 0, 0));  // 3 too
  CHECK(both.n == 4 && both.mean == 6 && both.m2 == 14);
  CHECK(Moments::of(2, 1, 0, -1e-300).m2 == 0);
}

}  // namespace

void test_batch_norm() {
  check_moments();
  on_each_isa([] {
    Random random(11);
    check_kernels<float>(random);
    check_kernels<double>(random);
    for (const Index columns : {1, 7, 129, 600})
      for (const Index rows : {2, 100, 3000}) {
        check_whole<float>(random, rows, columns);
        check_whole<double>(random, rows, columns);
      }
  });
}

}  // namespace fastopt::test
