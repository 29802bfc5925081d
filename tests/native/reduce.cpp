// Sums, norms, sums of columns and losses at sizes around every group of lanes and block, against plain loops
// in double.
#include "formulas/registry.hpp"
#include "native.hpp"

namespace fastopt::test {
namespace {

constexpr Index kSizes[] = {0, 1, 2, 15, 16, 17, 31, 33, 100, 511, 512, 513, 1030};
constexpr double kParams[Names::kMax] = {0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75};

std::string on_isa(const char* what) { return std::string(kernels().isa) + " " + what; }

// Integers: sums are exact.
template <class S>
void check_reductions(Random& random) {
  for (const Index n : kSizes) {
    const Guarded<S> x = random.integers<S>(n, 9);
    double want[4] = {};  // in the order of Monoid
    for (Index i = 0; i < n; ++i) {
      const double v = double(load(x[i])), a = std::abs(v);
      want[0] += v, want[1] += a, want[2] += v * v, want[3] = std::fmax(want[3], a);
    }
    for (int m = 0; m < 4; ++m)
      check_near<double>(on_isa("monoid"), m, kernels().reduce[m].at[int(kDType<S>)](x.data(), n), want[m],
                         0);
  }
}

template <class T>
const SumKernels& sums() {
  return kernels().sums[int(kDType<T>)];
}

template <class T>
void check_dot(Random& random) {
  for (const Index n : kSizes) {
    const Guarded<T> x = random.integers<T>(n, 9), y = random.integers<T>(n, 9);
    double want = 0;
    for (Index i = 0; i < n; ++i) want += double(x[i]) * double(y[i]);
    check_near<double>(on_isa("dot"), n, sums<T>().dot(x.data(), y.data(), n), want, 0);
  }
}

// Columns [first, last) of rows [begin, end); the other sums stay.
template <class T>
void check_column_sums(Random& random) {
  for (const Index columns : {1, 2, 5, 17, 64, 127, 128, 129, 300})
    for (const Index rows : {1, 2, 9, 300}) {
      const Guarded<T> x = random.integers<T>(rows * columns, 9);
      for (const bool all : {true, false}) {
        const Index first = all ? 0 : columns / 3, last = all ? columns : columns - columns / 5;
        const Index begin = all ? 0 : rows / 4, end = rows;
        const Guarded<double> got(columns, -0.5);
        sums<T>().column_sums({x.data(), columns, first, last, got.data()}, begin, end);
        for (Index j = 0; j < columns; ++j) {
          double want = 0;
          for (Index i = begin; i < end; ++i) want += double(x[i * columns + j]);
          check_near<double>(on_isa("column sum"), j, got[j], j >= first && j < last ? want : -0.5, 0);
        }
      }
    }
}

// On [begin, end), with and without outputs, weights and a parameter for each element.
template <template <class> class F, class T>
void check_loss(int formula, Random& random) {
  constexpr bool kHasParam = requires { F<T>(T(1)); };
  for (const Index n : kSizes) {
    const Index begin = n / 3, end = n - n / 5;
    const Guarded<T> x = random.uniforms<T>(n, 0.05, 0.95), t = random.uniforms<T>(n, 0.05, 0.95);
    const Guarded<T> weight = random.uniforms<T>(n, 0.5, 2), param = random.uniforms<T>(n, 0.5, 2);
    for (const bool full : {false, true}) {
      const Guarded<T> value(n, T(-1)), grad(n, T(-1));
      LossArgs args{formula, kParams, x.data(), t.data(), nullptr, nullptr, nullptr, nullptr, 0.5};
      if (full) args.weight = weight.data(), args.value = value.data(), args.grad = grad.data();
      if (full && kHasParam) args.param = param.data();
      const double got = sums<T>().loss(args, begin, end);
      double total = 0;
      for (Index i = 0; i < n; ++i) {
        double own[Names::kMax];
        std::copy(std::begin(kParams), std::end(kParams), own);
        if (args.param) own[0] = double(param[i]);
        Pair<double> want = F<double>(own)(double(x[i]), double(t[i]));
        if (full) want = {want.value * double(weight[i]), 0.5 * want.grad * double(weight[i])};
        const bool inside = i >= begin && i < end, written = full && inside;
        if (inside) total += want.value;
        check_near<T>(on_isa(F<T>::name), i, double(value[i]), written ? want.value : -1, written ? 16 : 0);
        check_near<T>(on_isa(F<T>::name) + " gradient", i, double(grad[i]), written ? want.grad : -1,
                      written ? 64 : 0);
      }
      check_near<T>(on_isa(F<T>::name) + " sum", n, got, total, 16, double(n));
    }
  }
}

template <class T, template <class> class... F>
void check_losses(Formulas<F...>, Random& random) {
  int formula = 0;
  (check_loss<F, T>(formula++, random), ...);
}

template <class T>
void check_type(Random& random) {
  check_reductions<T>(random);
  check_dot<T>(random);
  check_column_sums<T>(random);
  check_losses<T>(Losses{}, random);
}

}  // namespace

void test_reduce() {
  Random random(3);
  on_each_isa([&] {
    check_type<float>(random);
    check_type<double>(random);
    check_reductions<Bf16>(random);
    check_reductions<F16>(random);
  });
}

}  // namespace fastopt::test
