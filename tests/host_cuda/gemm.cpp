// Products by the CUDA driver, over a cuBLASLt of plain loops, against a double loop: operand orders, every
// part of the epilogue fused and not, storage types, precisions, sums for the gradient of a bias.
#include "cuda/gemm.hpp"

#include <algorithm>
#include <array>

#include "bits.hpp"
#include "cublaslt.hpp"
#include "formulas/philox.hpp"
#include "formulas/registry.hpp"
#include "host_runtime.hpp"
#include "parts.hpp"
#include "plain.hpp"

namespace fastopt::test {
namespace {

using host_cuda::cublaslt;

constexpr double kParams[Names::kMax] = {0.5, 20.0};

template <template <class> class... F>
double value_of(Formulas<F...>, int formula, double x) {
  double value = 0;
  int at = 0;
  (void)((at++ == formula && (value = F<double>(kParams).value(x), true)) || ...);
  return value;
}
template <template <class> class... F>
double slope_of(Formulas<F...>, int formula, double x, double y) {
  double slope = 0;
  int at = 0;
  (void)((at++ == formula && (slope = F<double>(kParams).grad(x, y), true)) || ...);
  return slope;
}

template <class S>
double rounded(double x) {
  return double(load(Store<S>::from(Compute<S>(x))));
}
double exactly(double x) { return x; }

// To the ten bits behind the point that TF32 keeps.
double rounded_to_tf32(double x) {
  int exponent = 0;
  const double fraction = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 11)), exponent - 11);
}

double as_factor(Precision precision, double x) {
  switch (precision) {
    case Precision::tf32:
      return rounded_to_tf32(x);
    case Precision::bf16:
      return rounded<Bf16>(x);
    case Precision::f16:
      return rounded<F16>(x);
    default:
      return x;
  }
}

// Scratch of device memory as a stream keeps it: behind its tickets it is garbage.
class Scratch {
 public:
  void* of(Index bytes) {
    if (bytes > Index(memory_.size()) - 64) memory_.assign(std::size_t(bytes) + 64, 0x5a);
    // Aligned as cudaMalloc's memory is not, so that nothing relies on that.
    char* const begin = memory_.data() + 16;
    std::memset(begin, 0, 64);
    return begin;
  }
  bool tickets_are_zero() const {
    return std::all_of(memory_.data() + 16, memory_.data() + 80, [](char x) { return x == 0; });
  }

 private:
  std::vector<char> memory_ = std::vector<char>(64);
};
Scratch scratch;

// How the elements of an operand lie: its rows or its columns side by side, with a gap between them or not.
struct Order {
  bool by_rows;
  Index gap;
};

template <class S>
struct Matrix {
  Index rows, columns;
  Guarded<S> memory;
  Operand operand;

  Matrix(Random& random, Index rows_, Index columns_, Order order, bool integers)
      : rows(rows_), columns(columns_) {
    const Index adjacent = order.by_rows ? columns : rows, step = adjacent + order.gap,
                n = rows * columns == 0 ? 0 : (order.by_rows ? rows - 1 : columns - 1) * step + adjacent;
    memory = integers ? random.integers<S>(n, 1) : random.uniforms<S>(n, -1, 1);
    operand = {memory.data(), order.by_rows ? step : 1, order.by_rows ? 1 : step};
  }
  double at(Index i, Index j) const {
    return double(load(static_cast<const S*>(operand.data)[i * operand.row + j * operand.col]));
  }
};

// What a product leaves, in double.
struct Results {
  std::vector<double> c, kept_input, kept_output, c_sums, a_sums;
};

template <class S>
class Product {
 public:
  // With integers everything up to the epilogue's formulas is exact.
  Product(Random& random, Index m, Index n, Index k, Order a, Order b, bool integers)
      : a_(random, m, k, a, integers),
        b_(random, k, n, b, integers),
        before_(numbers(random, m * n, integers)),
        c_(m * n),
        bias_(numbers(random, n, integers)),
        residual_(numbers(random, m * n, integers)),
        x_(random.uniforms<S>(m * n, -2, 2)),
        y_(random.uniforms<S>(m * n, -1, 1)),
        kept_input_(m * n),
        kept_output_(m * n),
        c_sums_(n),
        a_sums_(m) {
    args.m = m, args.n = n, args.k = k;
    args.a = a_.operand, args.b = b_.operand;
    args.c = c_.data(), args.c_row = n;
    args.epilogue.params = kParams;
  }

  DeviceGemm args;
  std::string name = "product";

  void add_bias() { args.epilogue.bias = bias_.data(); }
  void keep_input() { args.epilogue.kept_input = kept_input_.data(); }
  void keep_output() { args.epilogue.kept_output = kept_output_.data(); }
  void add_dropout() {
    Epilogue& e = args.epilogue;
    e.dropout = true;
    e.seed = 5, e.offset = 7, e.last_kept = 0x90000000, e.kept_scale = 2.0;
  }
  void add_gradient(int formula) {
    args.epilogue.gradient = formula;
    args.epilogue.x = x_.data(), args.epilogue.y = y_.data();
  }
  void add_residual() {
    args.epilogue.residual = residual_.data();
    args.epilogue.residual_scale = 0.5;
  }
  void add_sums() { args.c_sums = c_sums_.data(), args.a_sums = a_sums_.data(); }

  void run() {
    for (Index i = 0; i < c_.size(); ++i)
      c_[i] = args.beta == 0.0 ? Store<S>::from(Compute<S>(NAN)) : before_[i];
    gemm_on_device(kDType<S>, args, scratch.of(gemm_scratch_bytes(kDType<S>, args)), nullptr);
    CHECK(scratch.tickets_are_zero());
  }

  // `round` is applied to what each operation leaves; sums over k are of Sum, those of rows and columns of
  // double at least.
  template <class Sum, class Round>
  Results evaluate(Precision precision, Round round) const {
    const Epilogue& e = args.epilogue;
    const std::uint64_t offset = e.offset + (args.mask_offset ? *args.mask_offset : 0);
    Results results;
    using Wide = decltype(Sum() + double());
    std::vector<Wide> c_sums(std::size_t(args.n), 0);
    for (Index i = 0; i < args.m; ++i)
      for (Index j = 0; j < args.n; ++j) {
        const Index at = i * args.n + j;
        Sum sum = 0;
        for (Index p = 0; p < args.k; ++p)
          sum += Sum(as_factor(precision, a_.at(i, p)) * as_factor(precision, b_.at(p, j)));
        double v = args.alpha * double(sum);
        if (args.beta != 0.0) v += args.beta * double(load(before_[at]));
        v = round(v);
        if (e.bias) v = round(v + double(load(bias_[j])));
        results.kept_input.push_back(v);
        if (e.activation >= 0) v = round(value_of(Activations{}, e.activation, v));
        results.kept_output.push_back(v);
        if (e.dropout) {
          const bool kept = philox_word(e.seed, offset, std::uint64_t(at)) <= e.last_kept;
          v = kept ? round(v * e.kept_scale) : 0.0;
        }
        if (e.gradient >= 0)
          v = round(v * slope_of(Activations{}, e.gradient, double(load(x_[at])), double(load(y_[at]))));
        if (e.residual) v = round(double(load(residual_[at])) + e.residual_scale * v);
        results.c.push_back(v);
        c_sums[std::size_t(j)] += v;
      }
    for (Index i = 0; i < args.m; ++i) {
      Wide sum = 0;
      for (Index p = 0; p < args.k; ++p) sum += a_.at(i, p);
      results.a_sums.push_back(round(double(sum)));
    }
    for (const Wide sum : c_sums) results.c_sums.push_back(round(double(sum)));
    return results;
  }

  void check_exact() const {
    const Results want = evaluate<double>(Precision::ieee, rounded<S>);
    const auto check = [&](const char* what, const Guarded<S>& got, const std::vector<double>& wanted) {
      for (Index i = 0; i < got.size(); ++i)
        check_near<S>(where() + what, i, double(load(got[i])), wanted[std::size_t(i)], 0);
    };
    on_each(want, check);
  }

  // No further from the exact result than twice what plain arithmetic of the same types leaves.
  void check_error() const {
    const Results exact = evaluate<long double>(Precision::ieee, exactly);
    const Results plain = evaluate<Compute<S>>(args.precision, rounded<S>);
    std::vector<const std::vector<double>*> plains;
    on_each(plain,
            [&](const char*, const Guarded<S>&, const std::vector<double>& x) { plains.push_back(&x); });
    std::size_t next = 0;
    on_each(exact, [&](const char* what, const Guarded<S>& got, const std::vector<double>& wanted) {
      const std::vector<double>& alike = *plains[next++];
      double allowed = 0, size = 0, error = 0;
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        allowed = std::max(allowed, std::abs(alike[i] - wanted[i]));
        size = std::max(size, std::abs(wanted[i]));
        error = std::max(error, std::abs(double(load(got[Index(i)])) - wanted[i]));
        if (is_nan(got[Index(i)])) error = kInfinity;
      }
      if (error <= 2 * allowed + 2 * kEps<S> * size) return;
      if (failures++ < 50)
        fprintf(stderr, "%s%s: error %g, plain arithmetic has %g\n", where().c_str(), what, error, allowed);
    });
  }

  S& before(Index i) { return before_[i]; }
  const S& at(Index i) const { return c_[i]; }

 private:
  static Guarded<S> numbers(Random& random, Index n, bool integers) {
    return integers ? random.integers<S>(n, 2) : random.uniforms<S>(n, -1, 1);
  }

  template <class Check>
  void on_each(const Results& results, const Check& check) const {
    check("", c_, results.c);
    if (args.epilogue.kept_input) check(" kept input", kept_input_, results.kept_input);
    if (args.epilogue.kept_output) check(" kept output", kept_output_, results.kept_output);
    if (args.c_sums) check(" sums of C", c_sums_, results.c_sums);
    if (args.a_sums) check(" sums of A", a_sums_, results.a_sums);
  }

  std::string where() const {
    return name + " of type " + std::to_string(int(kDType<S>)) + ", " + std::to_string(args.m) + "x" +
           std::to_string(args.n) + "x" + std::to_string(args.k);
  }

  Matrix<S> a_, b_;
  Guarded<S> before_, c_, bias_, residual_, x_, y_, kept_input_, kept_output_, c_sums_, a_sums_;
};

constexpr Index kExtents[] = {1, 2, 3, 7, 8, 10, 16, 24, 33};

Order any_order(Random& random) { return {random.below(2) == 0, random.below(3)}; }
// What a_sums asks for, and x.T @ y has.
Order by_columns() { return {false, 0}; }

// Any sizes, orders and parts. Formulas 0 and 1, relu and leaky_relu, are exact too.
template <class S>
void check_random(Random& random) {
  const auto extent = [&] { return kExtents[random.below(Index(std::size(kExtents)))]; };
  const std::uint64_t parts = random.bits();
  const bool sums = parts & 1;
  Product<S> product(random, extent(), extent(), extent(), sums ? by_columns() : any_order(random),
                     any_order(random), true);
  if (sums) product.add_sums();
  if (parts & 2) product.args.beta = random.integer(2);
  if (parts & 4) product.args.alpha = 2.0;
  if (parts & 8) product.add_bias();
  if (parts & 16) product.keep_input();
  if (parts & 32) product.args.epilogue.activation = parts & 64 ? 0 : 1;
  if (parts & 128) product.keep_output();
  if (parts & 256) product.add_dropout();
  if (parts & 512) product.add_gradient(parts & 1024 ? 0 : 1);
  if (parts & 2048) product.add_residual();
  const std::uint64_t more = 11;
  if (parts & 4096) product.args.mask_offset = &more;
  product.args.precision = Precision((parts >> 13) & 3);
  cublaslt.refuse_epilogues = parts & 0x8000;
  product.run();
  product.check_exact();
  cublaslt.refuse_epilogues = false;
}

template <class S>
void check_every_activation(Random& random, Precision precision) {
  for (int formula = 0; formula < Activations::size; ++formula)
    for (const bool refuse : {false, true}) {
      cublaslt.refuse_epilogues = refuse;
      for (const int part : {0, 1, 2, 3}) {
        Product<S> forward(random, 10, 40, 33, {true, 0}, {false, 0}, false);
        forward.name = "forward " + std::to_string(formula);
        forward.args.precision = precision;
        forward.args.epilogue.activation = formula;
        if (part & 1) forward.add_bias();
        if (part & 2) forward.keep_input();
        forward.run();
        forward.check_error();
        Product<S> backward(random, 10, 40, 33, {false, 0}, {true, 0}, false);
        backward.name = "backward " + std::to_string(formula);
        backward.args.precision = precision;
        backward.add_gradient(formula);
        if (part & 1) backward.add_sums();
        if (part & 2) backward.add_dropout();
        backward.run();
        backward.check_error();
      }
    }
  cublaslt.refuse_epilogues = false;
}

// Every way of a product is tried unless it says so; large ones would take long.
class Untimed {
 public:
  Untimed() { setenv("FASTOPT_CUDA_AUTOTUNE", "0", 1); }
  ~Untimed() { unsetenv("FASTOPT_CUDA_AUTOTUNE"); }
};

// A layer of MNIST and its gradients.
template <class S>
void check_layer(Random& random, Precision precision) {
  const Untimed untimed;
  Product<S> forward(random, 64, 256, 784, {true, 0}, {false, 0}, false);
  forward.args.precision = precision;
  forward.add_bias(), forward.keep_input(), forward.keep_output(), forward.add_dropout();
  forward.args.epilogue.activation = index_of<Relu>(Activations{});
  forward.run();
  forward.check_error();
  Product<S> weight(random, 256, 33, 64, by_columns(), {true, 0}, false);
  weight.args.precision = precision;
  weight.args.beta = 1.0;
  weight.args.a_sums = nullptr;
  weight.run();
  weight.check_error();
}

template <class S>
void check_empty(Random& random) {
  constexpr Index kEmpty[][3] = {{0, 5, 3}, {5, 0, 3}, {5, 9, 0}, {0, 0, 0}};
  for (const auto& [m, n, k] : kEmpty)
    for (const double beta : {0.0, 1.0, 2.0}) {
      Product<S> product(random, m, n, k, by_columns(), {true, 0}, true);
      product.args.beta = beta;
      product.add_bias(), product.add_sums(), product.add_residual();
      product.run();
      product.check_exact();
    }
}

// w = (1 - lr wd) w - lr dy.T x, in place.
template <class S>
void check_sgd(Random& random) {
  Product<S> product(random, 24, 33, 10, by_columns(), {true, 0}, false);
  product.name = "sgd";
  product.args.alpha = -0.1, product.args.beta = 1 - 0.1 * 0.01;
  product.add_sums();
  product.args.c_sums = nullptr;
  product.run();
  product.check_error();
}

// NaN and infinity go the way that they go on the CPU: relu keeps a NaN.
void check_nan(Random& random) {
  for (const bool refuse : {false, true}) {
    cublaslt.refuse_epilogues = refuse;
    Product<float> product(random, 1, 3, 1, {true, 0}, {true, 0}, true);
    product.args.beta = 1.0;
    product.add_bias();
    product.args.epilogue.activation = index_of<Relu>(Activations{});
    product.before(0) = NAN, product.before(1) = INFINITY, product.before(2) = -INFINITY;
    product.run();
    CHECK(is_nan(product.at(0)));
    CHECK(product.at(1) == INFINITY);
    CHECK(product.at(2) == 0.0f);
  }
  cublaslt.refuse_epilogues = false;
}

template <class S>
lt::Epilogue epilogue_used(Product<S>& product) {
  cublaslt.epilogues.clear();
  product.run();
  CHECK(!cublaslt.epilogues.empty());
  return cublaslt.epilogues.empty() ? lt::Epilogue::none : cublaslt.epilogues.back();
}

// What cuBLASLt is left to do, and what it is not.
template <class S>
void check_fused(Random& random, Precision precision, bool gelu, bool rounded_factors) {
  using lt::Epilogue;
  const int gelu_tanh = index_of<GeluTanh>(Activations{});
  const auto used = [&](auto set) {
    Product<S> product(random, 8, 16, 3, by_columns(), {true, 0}, false);
    product.args.precision = precision;
    set(product);
    return epilogue_used(product);
  };
  const bool fuses = !std::is_same_v<S, double>;
  CHECK(used([](auto&) {}) == Epilogue::none);
  CHECK(used([](auto& p) { p.add_bias(); }) == (fuses ? Epilogue::bias : Epilogue::none));
  CHECK(used([](auto& p) { p.add_bias(), p.add_residual(); }) == Epilogue::none);
  CHECK(used([](auto& p) { p.add_sums(); }) ==
        (fuses && !rounded_factors ? Epilogue::bgrad_b : Epilogue::none));
  CHECK(used([](auto& p) { p.add_bias(), p.args.epilogue.activation = 0; }) == Epilogue::none);
  CHECK(used([](auto& p) { p.add_gradient(0); }) == Epilogue::none);
  const auto expect = [&](Epilogue epilogue, auto set) {
    CHECK(used([&](auto& p) { p.args.epilogue.activation = gelu_tanh, set(p); }) ==
          (gelu ? epilogue : Epilogue::none));
  };
  expect(Epilogue::gelu, [](auto&) {});
  expect(Epilogue::gelu_bias, [](auto& p) { p.add_bias(); });
  expect(Epilogue::gelu_aux, [](auto& p) { p.keep_input(); });
  expect(Epilogue::gelu_aux_bias, [](auto& p) { p.add_bias(), p.keep_input(); });
  expect(Epilogue::none, [](auto& p) { p.keep_output(); });
  expect(Epilogue::none, [](auto& p) { p.add_dropout(); });
  CHECK(used([&](auto& p) { p.add_gradient(gelu_tanh); }) == (gelu ? Epilogue::dgelu : Epilogue::none));
  CHECK(used([&](auto& p) { p.add_gradient(gelu_tanh), p.add_sums(); }) ==
        (gelu ? Epilogue::dgelu_bgrad : Epilogue::none));
}

void check_refusal(Random& random) {
  cublaslt.refuse_products = true;
  Product<float> product(random, 5, 6, 19, {true, 0}, {true, 0}, true);
  std::string message;
  try {
    product.run();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK(message == "cuBLASLt has no algorithm for a product of 5 x 6");
  cublaslt.refuse_products = false;
  product.run();
  product.check_exact();
}

// A product of its own shape, so that its plan is not yet made; which algorithm it then takes.
struct Run {
  lt::Epilogue epilogue;
  int algo;
};
Run run_alone(Product<float>& product) {
  product.run();
  product.check_exact();
  return {cublaslt.epilogues.back(), cublaslt.algos.back()};
}

// The first product of a kind tries all ways, into memory of its own, and takes the fastest from then on.
void check_autotune(Random& random) {
  const auto product = [&](Index m) {
    Product<float> biased(random, m, 5, 21, {true, 0}, {true, 0}, true);
    biased.add_bias();
    biased.args.beta = 1.0;
    return biased;
  };
  const host_cuda::CublasLt before = cublaslt;
  const auto set_costs = [](std::array<float, 3> fused, std::array<float, 3> plain) {
    std::copy(fused.begin(), fused.end(), cublaslt.costs[0]);
    std::copy(plain.begin(), plain.end(), cublaslt.costs[1]);
  };
  set_costs({3, 2, 4}, {9, 9, 9});
  Product<float> fused = product(41);
  Run run = run_alone(fused);
  CHECK(run.epilogue == lt::Epilogue::bias && run.algo == 1);
  CHECK(cublaslt.algos.size() > before.algos.size() + 6);
  const std::size_t runs = cublaslt.algos.size();
  set_costs({1, 9, 1}, {1, 1, 1});
  run = run_alone(fused);
  CHECK(run.algo == 1 && cublaslt.algos.size() == runs + 1);  // timed once

  set_costs({3, 2, 4}, {5, 4, 1});
  Product<float> plain = product(42);
  run = run_alone(plain);
  CHECK(run.epilogue == lt::Epilogue::none && run.algo == 2);

  cublaslt.failing_algo = 1;
  set_costs({3, 2, 4}, {9, 9, 9});
  Product<float> failing = product(43);
  run = run_alone(failing);
  CHECK(run.epilogue == lt::Epilogue::bias && run.algo == 0);
  cublaslt.failing_algo = -1;

  // What a capture has found first is timed once there is none.
  host_cuda::capturing = true;
  Product<float> captured = product(44);
  run = run_alone(captured);
  CHECK(run.epilogue == lt::Epilogue::bias && run.algo == 0);
  host_cuda::capturing = false;
  run = run_alone(captured);
  CHECK(run.algo == 1);

  // Nor is one timed where its results have no second place.
  const auto check_untimed = [&](Index m) {
    Product<float> untimed = product(m);
    const std::size_t so_far = cublaslt.algos.size();
    run = run_alone(untimed);
    CHECK(run.algo == 0 && cublaslt.algos.size() == so_far + 1);
  };
  {
    const Untimed untimed;
    check_untimed(45);
  }
  host_cuda::most_memory = 64;
  check_untimed(46);
  host_cuda::most_memory = std::size_t(-1);
  cublaslt = before;
}

template <class S>
void check_type(Random& random) {
  for (int i = 0; i < 240; ++i) check_random<S>(random);
  check_every_activation<S>(random, Precision::ieee);
  check_layer<S>(random, Precision::ieee);
  check_empty<S>(random);
  check_sgd<S>(random);
}

}  // namespace

void test_cuda_gemm() {
  Random random(14);
  check_type<float>(random);
  check_type<double>(random);
  check_type<Bf16>(random);
  check_type<F16>(random);
  for (const Precision precision : {Precision::tf32, Precision::bf16, Precision::f16}) {
    check_every_activation<float>(random, precision);
    check_layer<float>(random, precision);
    check_fused<float>(random, precision, true, true);
  }
  check_fused<float>(random, Precision::ieee, false, false);
  check_fused<double>(random, Precision::ieee, false, false);
  check_fused<Bf16>(random, Precision::ieee, true, false);
  check_fused<F16>(random, Precision::ieee, true, false);
  check_nan(random);
  check_autotune(random);
  check_refusal(random);
}

}  // namespace fastopt::test
