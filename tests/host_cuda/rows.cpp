// The CUDA rows driver against the definitions in long double: errors at most twice those of the CPU's kernel
// of the same type, or one rounding of a type that the CPU's has not.
#include <vector>

#include "bits.hpp"
#include "host_runtime.hpp"
#include "parts.hpp"

namespace fastopt::test {
namespace {

struct Shape {
  Index rows, columns;
};
// Rows for each way to share them out, and numbers of columns on both sides of where these change.
constexpr Shape kShapes[] = {{0, 3},    {1, 1},    {70, 1},   {257, 2},   {129, 10},  {1, 32},    {9, 32},
                             {9, 33},   {17, 64},  {5, 255},  {5, 257},   {9, 1000},  {2, 1024},  {3, 1025},
                             {2, 2049}, {2, 5000}, {1, 8193}, {1, 16384}, {1, 16385}, {2, 20000}, {1, 33001}};

using Exact = long double;

// A row in long double.
template <class S>
std::vector<Exact> exact(const S* x, Index n) {
  std::vector<Exact> y(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) y[std::size_t(i)] = Exact(load(x[i]));
  return y;
}
Exact log_sum_exp(const std::vector<Exact>& x) {
  Exact top = -std::numeric_limits<Exact>::infinity(), sum = 0;
  for (const Exact v : x) top = v > top ? v : top;
  for (const Exact v : x) sum += std::exp(v - top);
  return top + std::log(sum);
}
template <class S>
Guarded<double> exact_softmax(const Guarded<S>& x, const Index rows, const Index columns, bool log) {
  const Guarded<double> y(rows * columns);
  for (Index r = 0; r < rows; ++r) {
    const std::vector<Exact> row = exact(x.data() + r * columns, columns);
    const Exact total = log_sum_exp(row);
    for (Index c = 0; c < columns; ++c) {
      const Exact log_p = row[std::size_t(c)] - total;
      y[r * columns + c] = double(log ? log_p : std::exp(log_p));
    }
  }
  return copy(y);
}
template <class S>
Guarded<double> exact_softmax_grad(const Guarded<S>& dy, const Guarded<S>& y, Index rows, Index columns,
                                   bool log) {
  const Guarded<double> dx(rows * columns);
  for (Index begin = 0; begin < rows * columns; begin += columns) {
    Exact sum = 0;
    for (Index i = begin; i < begin + columns; ++i) sum += Exact(load(dy[i])) * (log ? 1 : Exact(load(y[i])));
    for (Index i = begin; i < begin + columns; ++i) {
      const Exact dy_i = Exact(load(dy[i])), y_i = Exact(load(y[i]));
      dx[i] = double(log ? dy_i - std::exp(y_i) * sum : y_i * (dy_i - sum));
    }
  }
  return copy(dx);
}

// n numbers that begin at 16 bytes, or do not.
template <class S>
Guarded<S> numbers(Random& random, Index n, bool aligned, double low, double high) {
  return random.uniforms<S>(padded(n, aligned), low, high);
}

template <class T>
const RowKernels& on_cpu() {
  return kernels().rows[int(kDType<T>)];
}

// n numbers: `got` by a kernel of S, `want` exactly, `cpu` by the CPU's kernel where it has one of S. scale:
// of what is rounded on the way, where that may be larger than the numbers.
template <class S, class C>
void check_errors(const std::string& what, Index n, const S* got, const double* want, const C* cpu,
                  double scale = 0.0) {
  double most = 0.0, most_cpu = 0.0;
  for (Index i = 0; i < n; ++i) {
    const double ours = double(load(got[i]));
    if (is_nan(want[i]) || std::isinf(want[i])) {
      if (!(is_nan(want[i]) ? is_nan(ours) : ours == want[i]) && failures++ < 50)
        fprintf(stderr, "%s [%ld of %ld]: %.17g, expected %.17g\n", what.c_str(), long(i), long(n), ours,
                want[i]);
      continue;
    }
    scale = std::fmax(scale, std::abs(want[i]));
    const double error = std::abs(ours - want[i]);
    most = error > most || is_nan(error) ? error : most;
    if constexpr (!std::is_same_v<C, void>)
      most_cpu = std::fmax(most_cpu, std::abs(double(cpu[i]) - want[i]));
  }
  if (most <= 2 * most_cpu + 2 * kEps<S> * scale) return;
  if (failures++ < 50)
    fprintf(stderr, "%s, %ld elements: error %g, the CPU's %g\n", what.c_str(), long(n), most, most_cpu);
}

// Whether the CPU has row kernels of a storage type.
template <class S>
constexpr bool kComputed = std::is_same_v<S, Compute<S>>;

template <class S>
std::string name(const char* call, const Shape& shape) {
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
  return std::string(call) + " " + kNames[int(kDType<S>)] + " " + std::to_string(shape.rows) + "x" +
         std::to_string(shape.columns);
}

// Logits, some of them infinite or NaN.
template <class S>
Guarded<S> logits(Random& random, const Shape& shape, bool aligned, bool special) {
  const Index n = shape.rows * shape.columns;
  const Guarded<S> x = numbers<S>(random, n, aligned, -8, 8);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (!special || n == 0) return copy(x);
  for (Index k = 0; k < n / 16 + 1; ++k) x[random.below(n)] = Store<S>::from(Compute<S>(-kInfinity));
  x[random.below(n)] = Store<S>::from(Compute<S>(std::numeric_limits<double>::quiet_NaN()));
  x[random.below(n)] = Store<S>::from(Compute<S>(kInfinity));
  const Index row = random.below(shape.rows);
  for (Index c = 0; c < shape.columns; ++c)
    x[row * shape.columns + c] = Store<S>::from(Compute<S>(-kInfinity));
  return copy(x);
}

template <class S>
void check_softmax(const Shape& shape, Random& random) {
  const auto [rows, columns] = shape;
  const Index n = rows * columns;
  for (const bool log : {false, true})
    for (const int way : {0, 1, 2, 3}) {  // in place, to another array, unaligned, special numbers
      const std::string what = name<S>(log ? "log_softmax" : "softmax", shape) + " " + std::to_string(way);
      const Guarded<S> x = logits<S>(random, shape, way != 2, way == 3),
                       y = numbers<S>(random, n, true, 0, 1);
      const Guarded<double> want = exact_softmax(x, rows, columns, log);
      const auto row = log ? &RowKernels::log_softmax : &RowKernels::softmax;
      const Guarded<S> cpu = copy(x), got = way == 0 ? copy(x) : copy(y);
      const void* in = way == 0 ? got.data() : x.data();
      softmax_on_device(kDType<S>, {in, got.data(), columns}, log, rows, nullptr);
      if constexpr (kComputed<S>) {
        (on_cpu<S>().*row)({cpu.data(), cpu.data(), columns}, 0, rows);
        check_errors(what, n, got.data(), want.data(), cpu.data());
      } else {
        check_errors<S, void>(what, n, got.data(), want.data(), nullptr);
      }
    }
}

template <class S>
void check_softmax_grad(const Shape& shape, Random& random) {
  const auto [rows, columns] = shape;
  const Index n = rows * columns;
  for (const bool log : {false, true})
    for (const int odd : {-1, 0, 1, 2, 3}) {  // the array that is not aligned; 3: in place
      const std::string what = name<S>(log ? "log_softmax_grad" : "softmax_grad", shape);
      const Guarded<S> dy = numbers<S>(random, n, odd != 0, -2, 2);
      const Guarded<S> y = numbers<S>(random, n, odd != 1, log ? -3 : 0, log ? -0.1 : 2.0 / double(columns));
      const Guarded<S> dx = numbers<S>(random, n, odd != 2, 0, 1), got = odd == 3 ? copy(dy) : copy(dx);
      const Guarded<double> want = exact_softmax_grad(dy, y, rows, columns, log);
      const auto row = log ? &RowKernels::log_softmax_grad : &RowKernels::softmax_grad;
      softmax_grad_on_device(kDType<S>, {odd == 3 ? got.data() : dy.data(), y.data(), got.data(), columns},
                             log, rows, nullptr);
      if constexpr (kComputed<S>) {
        const Guarded<S> cpu = copy(dy);
        (on_cpu<S>().*row)({cpu.data(), y.data(), cpu.data(), columns}, 0, rows);
        check_errors(what, n, got.data(), want.data(), cpu.data(), std::sqrt(double(columns)));
      } else {
        check_errors<S, void>(what, n, got.data(), want.data(), nullptr);
      }
    }
}

// A batch for cross-entropy in one storage type, and what a kernel leaves of it.
template <class S>
struct Batch {
  Guarded<S> x, probabilities, weight, value, grad;
  CrossEntropyArgs args(const Index* target, Index columns, double smoothing, double scale) const {
    return {x.data(),
            target,
            probabilities.size() ? probabilities.data() : nullptr,
            weight.size() ? weight.data() : nullptr,
            value.data(),
            grad.size() ? grad.data() : nullptr,
            columns,
            -100,
            smoothing,
            scale};
  }
  template <class To>
  Batch<To> as() const {
    return {cast<To>(x), cast<To>(probabilities), cast<To>(weight), cast<To>(value), cast<To>(grad)};
  }
  template <class To>
  static Guarded<To> cast(const Guarded<S>& from) {
    Guarded<To> to(from.size());
    for (Index i = 0; i < from.size(); ++i) to[i] = Store<To>::from(Compute<To>(load(from[i])));
    return to;
  }
};

// The value and gradient of each row, for grad_scale 0.5.
template <class S>
void exact_cross_entropy(const Batch<S>& batch, const CrossEntropyArgs& args, bool nll, Index rows,
                         double* values, double* grads) {
  const Index columns = args.columns;
  const Exact smoothing = Exact(args.label_smoothing);
  for (Index r = 0; r < rows; ++r) {
    const std::vector<Exact> x = exact(batch.x.data() + r * columns, columns);
    const Exact log_sum = nll ? 0 : log_sum_exp(x);
    const bool ignored = args.target && args.target[r] == args.ignore_index;
    Exact value = 0, mass = 0;
    const auto q = [&](Index c) {
      const Exact given =
          args.target ? Exact(c == args.target[r]) : Exact(load(batch.probabilities[r * columns + c]));
      const Exact weight = args.weight ? Exact(load(batch.weight[c])) : 1;
      return ignored ? 0 : weight * ((1 - smoothing) * given + smoothing / Exact(columns));
    };
    for (Index c = 0; c < columns; ++c) {
      mass += q(c);
      // Where the sum is not a number, neither is the loss.
      value += q(c) == 0 ? 0 : q(c) * (log_sum - x[std::size_t(c)]);
    }
    values[r] = double(value);
    for (Index c = 0; c < columns; ++c) {
      const Exact p = nll ? 0 : std::exp(x[std::size_t(c)] - log_sum);
      grads[r * columns + c] = ignored ? 0.0 : double((mass * p - q(c)) / 2);
    }
  }
}

enum Variant { kPlain, kWeights, kSmoothing, kBoth, kProbabilities, kWeightedProbabilities, kNll, kVariants };

// way: in place, apart with special numbers, unaligned, or without gradient.
template <class S>
void check_cross_entropy(const Shape& shape, Variant variant, Random& random, int way) {
  const auto [rows, columns] = shape;
  const Index n = rows * columns;
  const bool nll = variant == kNll, given = variant == kProbabilities || variant == kWeightedProbabilities;
  const bool weighted = variant == kWeights || variant == kBoth || variant == kWeightedProbabilities;
  const double smoothing = variant == kSmoothing || variant == kBoth || given ? 0.125 : 0.0;
  const std::string what =
      name<S>("cross_entropy", shape) + " variant " + std::to_string(variant) + " way " + std::to_string(way);
  Batch<S> got;
  got.x = nll ? numbers<S>(random, n, way != 2, -9, -0.1) : logits<S>(random, shape, way != 2, way == 1);
  if (given) got.probabilities = numbers<S>(random, n, true, 0, 2.0 / double(columns));
  if (weighted) got.weight = numbers<S>(random, columns, true, 0.5, 2);
  got.value = numbers<S>(random, rows, true, 0, 1);
  if (way != 3) got.grad = numbers<S>(random, n, true, 0, 1);
  const Guarded<Index> target(rows);
  for (Index r = 0; r < rows; ++r) target[r] = random.below(5) == 0 ? -100 : random.below(columns);
  const Index* classes = given ? nullptr : target.data();
  const Guarded<double> want_value(rows), want_grad(n);
  exact_cross_entropy(got, got.args(classes, columns, smoothing, 0.5), nll, rows, want_value.data(),
                      want_grad.data());
  double total = 0.0;
  for (Index r = 0; r < rows; ++r) total += want_value[r];
  Batch<Compute<S>> cpu = got.template as<Compute<S>>();
  if (kComputed<S>)
    (on_cpu<Compute<S>>().*(nll ? &RowKernels::nll : &RowKernels::cross_entropy))(
        cpu.args(classes, columns, smoothing, 0.5), 0, rows);
  const Guarded<S> sum(1);
  const double divisor = 4.0;
  std::vector<char> scratch(std::size_t(sum_scratch_bytes(rows)), 0);
  CrossEntropyArgs args = got.args(classes, columns, smoothing, 2.0);
  if (way == 0) {
    got.grad = copy(got.x);
    args.x = args.grad = got.grad.data();
  }
  cross_entropy_on_device(kDType<S>, args, nll, rows, {sum.data(), 2.0, &divisor}, scratch.data(), nullptr);
  const auto check = [&](const char* part, Index size, const S* ours, const double* exact,
                         const Compute<S>* own) {
    if (kComputed<S>) return check_errors(what + part, size, ours, exact, own);
    check_errors<S, void>(what + part, size, ours, exact, nullptr);
  };
  check(" value", rows, got.value.data(), want_value.data(), cpu.value.data());
  if (way != 3) check(" gradient", n, got.grad.data(), want_grad.data(), cpu.grad.data());
  const double mean = total / 8.0;
  // In whatever order rows are summed, errors grow with their number.
  check_near<S>(what + " sum", 0, double(load(sum[0])), mean, std::is_same_v<S, double> ? 16 : 2);
  for (int i = 0; i < 64; ++i) CHECK(scratch[std::size_t(i)] == 0);
}

// A class that is none: NaN in its row, and nothing else is touched. Then what the mean divides by.
template <class S>
void check_classes(Random& random) {
  for (const auto& [rows, columns] : {Shape{5, 3}, Shape{5, 300}, Shape{3, 1030}, Shape{3, 17000}})
    for (const bool nll : {false, true})
      for (const double smoothing : {0.0, 0.25}) {
        if (nll && smoothing != 0.0) continue;
        const Guarded<S> x = random.uniforms<S>(rows * columns, -3, -1), grad(rows * columns), value(rows);
        const Guarded<S> weight = random.integers<S>(columns, 4), sum(1);
        const Guarded<Index> target(rows, 0);
        target[0] = -100, target[1] = columns, target[2] = -1;
        std::vector<char> scratch(std::size_t(sum_scratch_bytes(rows)), 0);
        CrossEntropyArgs args{x.data(),    target.data(), nullptr, weight.data(), value.data(),
                              grad.data(), columns,       -100,    smoothing,     1.0};
        cross_entropy_on_device(kDType<S>, args, nll, rows, {sum.data()}, scratch.data(), nullptr);
        for (Index r = 0; r < rows; ++r) {
          const bool bad = r == 1 || r == 2;
          CHECK(is_nan(value[r]) == bad);
          if (r == 0) CHECK(load(value[r]) == 0);
          for (Index c = 0; c < columns; ++c) {
            CHECK(is_nan(grad[r * columns + c]) == bad);
            if (r == 0) CHECK(load(grad[c]) == 0);
          }
        }
        CHECK(is_nan(sum[0]));
        double divisor = -1.0;
        class_divisor_on_device(kDType<S>, args, rows, &divisor, scratch.data(), nullptr);
        CHECK(divisor == double(rows - 3) * double(load(weight[0])));
        args.weight = nullptr;
        class_divisor_on_device(kDType<S>, args, rows, &divisor, scratch.data(), nullptr);
        CHECK(divisor == double(rows - 1));
        args.target = nullptr, args.probabilities = x.data();
        class_divisor_on_device(kDType<S>, args, rows, &divisor, scratch.data(), nullptr);
        CHECK(divisor == double(rows));
      }
}

// A machine whose blocks run in clusters or do not, or whose code is older.
class Clusters {
 public:
  Clusters(int clusters, int ptx) : before_(host_cuda::machine) {
    host_cuda::machine.clusters = clusters, host_cuda::machine.ptx = ptx;
  }
  ~Clusters() { host_cuda::machine = before_; }

 private:
  host_cuda::Machine before_;
};

// Rows on both sides of what one, two, four and eight blocks hold.
template <class S>
void check_clusters(Random& random) {
  const Index each = sizeof(S) == 8 ? 4096 : 16384;
  for (const Index blocks : {1, 2, 4, 8})
    for (const Index columns : {blocks * each, blocks * each + 1}) {
      check_cross_entropy<S>({1, columns}, kPlain, random, int(blocks) / 2 % 4);
      check_cross_entropy<S>({2, columns / 2 + 1}, kWeightedProbabilities, random, int(blocks) / 4);
    }
  for (const auto& [clusters, ptx] : {std::pair{0, 90}, {1, 75}}) {
    const Clusters none(clusters, ptx);
    check_cross_entropy<S>({2, each + 1}, kBoth, random, clusters);
    check_cross_entropy<S>({1, 2 * each + 5}, kPlain, random, 1);
  }
}

// Two launches, which take blocks and threads the other way round, leave the same bits.
void check_repeats(Random& random) {
  const Index rows = 3, columns = 40000;
  const Guarded<float> x = random.uniforms<float>(rows * columns, -3, 3);
  const Guarded<Index> target(rows, 7);
  std::vector<Guarded<float>> left;
  for (int turn = 0; turn < 2; ++turn) {
    Guarded<float> value(rows), grad(rows * columns), sum(1);
    std::vector<char> scratch(std::size_t(sum_scratch_bytes(rows)), 0);
    const CrossEntropyArgs args{x.data(),    target.data(), nullptr, nullptr, value.data(),
                                grad.data(), columns,       -100,    0.1,     1.0};
    cross_entropy_on_device(DType::f32, args, false, rows, {sum.data()}, scratch.data(), nullptr);
    for (Guarded<float>* part : {&value, &grad, &sum}) left.push_back(std::move(*part));
  }
  for (std::size_t i = 0; i < 3; ++i) check_same("repeated cross_entropy", left[i], left[i + 3]);
}

// More rows than a launch has teams.
void check_many(Random& random) {
  check_cross_entropy<float>({270000, 1}, kNll, random, 1);
  check_cross_entropy<float>({1030, 1030}, kWeights, random, 0);
  check_cross_entropy<double>({515, 4097}, kBoth, random, 0);
}

template <class S>
void check_storage(Random& random) {
  for (const Shape& shape : kShapes) {
    check_softmax<S>(shape, random);
    check_softmax_grad<S>(shape, random);
  }
}

template <class S>
void check_cross_entropies(Random& random) {
  int way = 0;  // another one for each variant of a shape
  for (const Shape& shape : kShapes)
    for (int variant = 0; variant < kVariants; ++variant, ++way)
      check_cross_entropy<S>(shape, Variant(variant), random, way % 4);
  check_classes<S>(random);
}

}  // namespace

void test_cuda_rows() {
  Random random(14);
  check_storage<float>(random);
  check_storage<double>(random);
  check_storage<Bf16>(random);
  check_storage<F16>(random);
}

void test_cuda_cross_entropy() {
  Random random(15);
  check_cross_entropies<float>(random);
  check_cross_entropies<double>(random);
  check_cross_entropies<Bf16>(random);
  check_cross_entropies<F16>(random);
  check_many(random);
  check_clusters<float>(random);
  check_clusters<double>(random);
  check_clusters<Bf16>(random);
  check_clusters<F16>(random);
  check_repeats(random);
}

}  // namespace fastopt::test
