// The elementwise kernels on part of their arrays, at sizes around every vector and block, against the same
// formulas in double; what lies outside of the part stays.
#include "formulas/philox.hpp"
#include "formulas/registry.hpp"
#include "native.hpp"

namespace fastopt::test {
namespace {

constexpr Index kSizes[] = {1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 65, 257, 1023, 1025, 2100};
constexpr double kParams[Names::kMax] = {0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75};

// Compares the part [begin, end) with want(i), and the rest with what it was.
template <class S, class Want>
void check_part(const std::string& what, const Guarded<S>& got, const Guarded<S>& before, Index begin,
                Index end, double units, Want want) {
  const std::string where = std::string(kernels().isa) + " " + what;
  for (Index i = 0; i < got.size(); ++i) {
    const bool inside = i >= begin && i < end;
    check_near<S>(where, i, double(load(got[i])), inside ? double(want(i)) : double(load(before[i])),
                  inside ? units : 0);
  }
}

template <class S>
const ElementwiseKernels& elementwise() {
  return kernels().elementwise[int(kDType<S>)];
}

// Twice what math.hpp allows a function, and one rounding more where storage is narrow.
template <class S>
constexpr double kUnits = sizeof(S) == 2 ? 1 : 16;

template <template <class> class F, class S>
void check_activation(int formula, Random& random) {
  const F<double> f(kParams);
  for (const Index n : kSizes) {
    const Index begin = n / 3, end = n - n / 5;
    const Guarded<S> x = random.uniforms<S>(n, -4, 4), dy = random.uniforms<S>(n, -1, 1), y(n), dx(n), old(n);
    elementwise<S>().activation({formula, kParams, x.data(), nullptr, 0, y.data()}, begin, end);
    check_part(f.name, y, old, begin, end, kUnits<S>, [&](Index i) { return f.value(double(load(x[i]))); });
    elementwise<S>().activation_grad({formula, kParams, dy.data(), f.grad_needs_x ? x.data() : nullptr,
                                      f.grad_needs_y ? y.data() : nullptr, dx.data()},
                                     begin, end);
    check_part(std::string(f.name) + " gradient", dx, old, begin, end, kUnits<S>,
               [&](Index i) { return double(load(dy[i])) * f.grad(double(load(x[i])), double(load(y[i]))); });
  }
}

template <class S, template <class> class... F>
void check_activations(Formulas<F...>, Random& random) {
  int formula = 0;
  (check_activation<F, S>(formula++, random), ...);
}

// Small integers, so that the sums are exact in every storage type. The output is the input's array.
template <class S>
void check_bias(Random& random) {
  for (const Index columns : {1, 3, 63, 64, 65, 300, 1500})
    for (const Index rows : {1, 2, 7}) {
      const Index n = rows * columns, begin = n / 3, end = n - n / 5;
      const Guarded<S> x = random.integers<S>(n, 9), bias = random.integers<S>(columns, 9), old(n);
      std::memcpy(old.data(), x.data(), std::size_t(n) * sizeof(S));
      elementwise<S>().activation({-1, nullptr, x.data(), bias.data(), columns, x.data()}, begin, end);
      check_part("bias", x, old, begin, end, 0,
                 [&](Index i) { return load(old[i]) + load(bias[i % columns]); });
    }
}

template <class S>
void check_dropout_and_axpy(Random& random) {
  using T = Compute<S>;
  for (const Index n : kSizes) {
    const Index begin = n / 3, end = n - n / 5;
    const Guarded<S> x = random.integers<S>(n, 9), y = random.integers<S>(n, 9), old(n);
    std::memcpy(old.data(), y.data(), std::size_t(n) * sizeof(S));
    elementwise<S>().axpy(3.0, x.data(), y.data(), begin, end);
    check_part("axpy", y, old, begin, end, 0, [&](Index i) { return load(old[i]) + T(3) * load(x[i]); });
    const Guarded<S> dropped(n), zeros(n);
    const DropoutArgs args{x.data(), dropped.data(), random.bits(), random.bits(), 0x60000000, 2.0};
    elementwise<S>().dropout(args, begin, end);
    check_part("dropout", dropped, zeros, begin, end, 0, [&](Index i) {
      const bool kept = philox_word(args.seed, args.offset, std::uint64_t(i)) <= args.last_kept;
      return kept ? T(2) * load(x[i]) : T(0);
    });
  }
}

struct MathCase {
  double (*exact)(double);
  bool nonpositive = false;  // the function is for arguments up to 0
  bool probability = false;  // near 0 it is 1 minus a large one, rounded, and of a NaN it is any number
};
double normal_cdf(double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }

// In the order of KernelTable::math.
constexpr MathCase kMathCases[] = {{std::exp},
                                   {std::exp, true},
                                   {std::exp, true},
                                   {std::expm1},
                                   {std::log},
                                   {std::log1p},
                                   {std::tanh},
                                   {std::erf},
                                   {[](double x) { return 1 / (1 + std::exp(-x)); }},
                                   {normal_cdf, false, true},
                                   {std::sqrt}};

template <class T>
void check_math(Random& random) {
  using Limits = std::numeric_limits<T>;
  const std::vector<T> special = {T(0),
                                  -T(0),
                                  Limits::infinity(),
                                  -Limits::infinity(),
                                  Limits::max(),
                                  -Limits::max(),
                                  Limits::quiet_NaN(),
                                  Limits::min(),
                                  -Limits::min(),
                                  T(1),
                                  Limits::denorm_min(),
                                  -Limits::denorm_min(),
                                  T(-1),
                                  T(1e-30),
                                  T(-1e-30),
                                  T(1e30)};
  const Index n = 333;
  const Guarded<T> x = random.uniforms<T>(n, -20, 20), y(n);
  for (std::size_t i = 0; i < special.size(); ++i) x[Index(7 * i)] = special[i];
  Guarded<T> below(n);
  for (Index i = 0; i < n; ++i) below[i] = -std::abs(x[i]);
  for (std::size_t f = 0; f < std::size(kMathCases); ++f) {
    const MathCase& math = kMathCases[f];
    const Guarded<T>& in = math.nonpositive ? below : x;
    kernels().math[f].at[std::is_same_v<T, double>](in.data(), y.data(), n);
    const double scale = math.probability ? 0.25 : double(Limits::min());
    for (Index i = 0; i < n; ++i)
      if (!math.probability || !std::isnan(in[i]))
        check_near<T>("math " + std::to_string(f), i, double(y[i]), math.exact(double(in[i])), 8, scale);
  }
}

template <class S>
void check_storage(Random& random) {
  check_activations<S>(Activations{}, random);
  check_bias<S>(random);
  check_dropout_and_axpy<S>(random);
}

}  // namespace

void test_elementwise() {
  Random random(2);
  on_each_isa([&] {
    check_storage<float>(random);
    check_storage<double>(random);
    check_storage<Bf16>(random);
    check_storage<F16>(random);
    check_math<float>(random);
    check_math<double>(random);
  });
}

}  // namespace fastopt::test
