// Softmax, cross-entropy and their relatives on rows [begin, end), on both sides of every change of method,
// against plain loops in double; the rows outside stay.
#include "native.hpp"

namespace fastopt::test {
namespace {

constexpr Index kColumns[] = {1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 100, 512, 513, 700};
constexpr Index kRows[] = {1, 2, 15, 16, 17, 37};
constexpr double kUnits = 32;

template <class T>
const RowKernels& rows_of() {
  return kernels().rows[int(kDType<T>)];
}

template <class T>
struct Case {
  Index rows, columns, begin, end;
  Guarded<T> x, dy;
  std::vector<double> log_p;  // log-softmax of x

  Case(Random& random, Index rows_, Index columns_)
      : rows(rows_),
        columns(columns_),
        begin(rows / 4),
        end(rows - rows / 8),
        x(random.uniforms<T>(rows * columns, -5, 5)),
        dy(random.uniforms<T>(rows * columns, -1, 1)),
        log_p(std::size_t(rows * columns)) {
    for (Index r = 0; r < rows; ++r) {
      double sum = 0;
      for (Index c = 0; c < columns; ++c) sum += std::exp(double(x[r * columns + c]));
      for (Index c = 0; c < columns; ++c) at(log_p, r, c) = double(x[r * columns + c]) - std::log(sum);
    }
  }

  template <class V>
  double& at(V& values, Index r, Index c) const {
    return values[std::size_t(r * columns + c)];
  }
  double p(Index r, Index c) const { return std::exp(log_p[std::size_t(r * columns + c)]); }

  // Rows inside as want(r, c), those outside as they were made: 0.
  template <class Want>
  void check(const char* what, const Guarded<T>& got, Want want) const {
    const std::string where =
        std::string(kernels().isa) + " " + what + " " + std::to_string(rows) + "x" + std::to_string(columns);
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < columns; ++c) {
        const bool inside = r >= begin && r < end;
        check_near<T>(where, r * columns + c, double(got[r * columns + c]), inside ? want(r, c) : 0.0,
                      inside ? kUnits : 0);
      }
  }
};

template <class T>
void check_softmax(const Case<T>& a) {
  const Index n = a.rows * a.columns;
  const Guarded<T> y(n), log_y(n), dx(n), log_dx(n);
  rows_of<T>().softmax({a.x.data(), y.data(), a.columns}, a.begin, a.end);
  a.check("softmax", y, [&](Index r, Index c) { return a.p(r, c); });
  rows_of<T>().log_softmax({a.x.data(), log_y.data(), a.columns}, a.begin, a.end);
  a.check("log_softmax", log_y, [&](Index r, Index c) { return std::log(a.p(r, c)); });

  std::vector<double> sum(std::size_t(a.rows), 0.0), dot(std::size_t(a.rows), 0.0);
  for (Index r = 0; r < a.rows; ++r)
    for (Index c = 0; c < a.columns; ++c) {
      const double dy = double(a.dy[r * a.columns + c]);
      sum[std::size_t(r)] += dy, dot[std::size_t(r)] += dy * a.p(r, c);
    }
  rows_of<T>().softmax_grad({a.dy.data(), y.data(), dx.data(), a.columns}, a.begin, a.end);
  a.check("softmax gradient", dx, [&](Index r, Index c) {
    return a.p(r, c) * (double(a.dy[r * a.columns + c]) - dot[std::size_t(r)]);
  });
  rows_of<T>().log_softmax_grad({a.dy.data(), log_y.data(), log_dx.data(), a.columns}, a.begin, a.end);
  a.check("log_softmax gradient", log_dx, [&](Index r, Index c) {
    return double(a.dy[r * a.columns + c]) - a.p(r, c) * sum[std::size_t(r)];
  });
}

// What a row is compared with: probabilities or a class, smoothed and weighted; all zero for a row that is
// ignored.
struct Targets {
  bool probabilities, weighted;
  double smoothing;
};

template <class T>
void check_cross_entropy(const Case<T>& a, const Targets& targets, Random& random) {
  const Index n = a.rows * a.columns, ignored = -100;
  const Guarded<T> given = random.uniforms<T>(n, 0, 2 / double(a.columns)),
                   weight = random.uniforms<T>(a.columns, 0.5, 2);
  const Guarded<T> value(a.rows), grad(n);
  const Guarded<Index> classes(a.rows);
  for (Index r = 0; r < a.rows; ++r) classes[r] = r % 5 == 3 ? ignored : random.below(a.columns);
  CrossEntropyArgs args{a.x.data(),  nullptr,   nullptr, nullptr,           value.data(),
                        grad.data(), a.columns, ignored, targets.smoothing, 0.5};
  if (targets.probabilities) {
    args.probabilities = given.data();
  } else {
    args.target = classes.data();
  }
  if (targets.weighted) args.weight = weight.data();

  std::vector<double> q(std::size_t(n), 0.0), mass(std::size_t(a.rows), 0.0), loss(std::size_t(a.rows), 0.0);
  double total = 0;
  for (Index r = 0; r < a.rows; ++r) {
    if (!targets.probabilities && classes[r] == ignored) continue;
    for (Index c = 0; c < a.columns; ++c) {
      const double base = targets.probabilities ? double(given[r * a.columns + c]) : double(classes[r] == c);
      const double smooth = (1 - targets.smoothing) * base + targets.smoothing / double(a.columns);
      a.at(q, r, c) = smooth * (targets.weighted ? double(weight[c]) : 1.0);
      mass[std::size_t(r)] += a.at(q, r, c);
      loss[std::size_t(r)] -= a.at(q, r, c) * a.log_p[std::size_t(r * a.columns + c)];
    }
    if (r >= a.begin && r < a.end) total += loss[std::size_t(r)];
  }
  const double got = rows_of<T>().cross_entropy(args, a.begin, a.end);
  const double scale = double(a.rows);
  check_near<T>("cross_entropy sum", n, got, total, kUnits, scale);
  for (Index r = a.begin; r < a.end; ++r)
    check_near<T>("cross_entropy", r, double(value[r]), loss[std::size_t(r)], kUnits);
  a.check("cross_entropy gradient", grad,
          [&](Index r, Index c) { return 0.5 * (mass[std::size_t(r)] * a.p(r, c) - a.at(q, r, c)); });

  args.value = args.grad = nullptr;
  check_near<T>("cross_entropy alone", n, rows_of<T>().cross_entropy(args, a.begin, a.end), total, kUnits,
                scale);
}

template <class T>
void check_nll(const Case<T>& a, Random& random) {
  const Guarded<T> weight = random.uniforms<T>(a.columns, 0.5, 2), value(a.rows), grad(a.rows * a.columns);
  const Guarded<Index> classes(a.rows);
  for (Index r = 0; r < a.rows; ++r) classes[r] = r % 5 == 3 ? -1 : random.below(a.columns);
  const CrossEntropyArgs args{a.x.data(),  classes.data(), nullptr, weight.data(), value.data(),
                              grad.data(), a.columns,      -1,      0.0,           0.5};
  double total = 0;
  const double got = rows_of<T>().nll(args, a.begin, a.end);
  for (Index r = a.begin; r < a.end; ++r) {
    const Index c = classes[r];
    const double want = c < 0 ? 0.0 : -double(weight[c]) * double(a.x[r * a.columns + c]);
    check_near<T>("nll", r, double(value[r]), want, 1);
    total += want;
  }
  check_near<T>("nll sum", a.columns, got, total, kUnits, double(a.rows));
  a.check("nll gradient", grad,
          [&](Index r, Index c) { return classes[r] == c ? -0.5 * double(weight[c]) : 0.0; });
}

template <class T>
void check_type(Random& random) {
  for (const Index columns : kColumns)
    for (const Index rows : kRows) {
      const Case<T> a(random, rows, columns);
      check_softmax(a);
      check_nll(a, random);
      for (const bool probabilities : {false, true})
        for (const bool weighted : {false, true})
          for (const double smoothing : {0.0, 0.125})
            check_cross_entropy(a, {probabilities, weighted, smoothing}, random);
    }
}

}  // namespace

void test_rows() {
  Random random(4);
  on_each_isa([&] {
    check_type<float>(random);
    check_type<double>(random);
  });
}

}  // namespace fastopt::test
