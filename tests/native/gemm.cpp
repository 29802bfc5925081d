// Matrix products against a double loop: every form of the operands, sizes around every tile, epilogues, and
// products from several threads at once. Operands hold small integers, so that results are exact whatever the
// order of their sums; what lies between their rows is NaN and reaches no result. Their memory ends with
// their last element.
#include "core/gemm.hpp"

#include <string_view>

#include "core/parallel.hpp"
#include "formulas/philox.hpp"
#include "formulas/registry.hpp"
#include "native.hpp"

namespace fastopt::test {
namespace {

constexpr Index kSizes[] = {1, 1, 2, 3, 5, 7, 8, 11, 12, 13, 16, 17, 24, 31, 32, 33, 47, 49, 64, 65, 97};
constexpr Index kDepths[] = {0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 33, 64, 100, 255, 257, 300};

// How the elements of an operand lie: along its rows, along its columns, with gaps, backwards.
enum class Layout { rows, columns, padded_rows, padded_columns, every_other, backwards };
constexpr int kLayouts = 6;

template <class T>
struct Matrix {
  Guarded<T> memory;
  Operand operand;
  Index rows, columns;

  Matrix(Random& random, Index rows_, Index columns_, Layout layout, bool sparse)
      : rows(rows_), columns(columns_) {
    Index row = columns, col = 1, first = 0;
    switch (layout) {
      case Layout::rows:
        break;
      case Layout::columns:
        row = 1, col = rows;
        break;
      case Layout::padded_rows:
        row = columns + 5;
        break;
      case Layout::padded_columns:
        row = 1, col = rows + 3;
        break;
      case Layout::every_other:
        row = 2 * columns + 1, col = 2;
        break;
      case Layout::backwards:
        row = -columns, col = -1, first = rows * columns - 1;
    }
    const bool empty = rows == 0 || columns == 0;
    const Index last = std::abs(row) * (rows - 1) + std::abs(col) * (columns - 1);
    memory = Guarded<T>(empty ? 0 : last + 1, std::numeric_limits<T>::quiet_NaN());
    operand = {empty ? memory.data() : memory.data() + first, row, col};
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) {
        const T zero = random.below(2) ? T(0) : -T(0);
        memory[first + i * row + j * col] = sparse && random.below(8) ? zero : T(random.integer(4));
      }
  }

  double at(Index i, Index j) const {
    return double(static_cast<const T*>(operand.data)[i * operand.row + j * operand.col]);
  }
};

// A product with everything that its epilogue may ask for, and its own idea of the result.
template <class T>
class Product {
 public:
  Product(Random& random, Index m, Index n, Index k, Layout a, Layout b, Zeros zeros = Zeros::none)
      : a_(random, m, k, a, zeros == Zeros::rows),
        b_(random, k, n, b, zeros == Zeros::columns),
        padding_(random.below(4)),
        before_(random.integers<T>(m * n, 4)),
        c_(m * n == 0 ? 0 : (m - 1) * (n + padding_) + n, kGap),
        bias_(random.integers<T>(n, 4)),
        residual_(random.integers<T>(m * n, 4)),
        x_(random.uniforms<T>(m * n, -2, 2)),
        y_(random.uniforms<T>(m * n, -1, 1)),
        kept_input_(m * n, kGap),
        kept_output_(m * n, kGap) {
    args = {m, n, k, a_.operand, b_.operand, c_.data(), n + padding_};
    args.epilogue.params = kParams;
  }

  GemmArgs args;

  void add_beta(double beta) { args.beta = beta; }
  void add_bias() { args.epilogue.bias = bias_.data(); }
  void add_activation(int formula) {
    args.epilogue.activation = formula;
    args.epilogue.kept_input = kept_input_.data();
    args.epilogue.kept_output = kept_output_.data();
  }
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

  // C as a product with beta 0 may find it: not to be read.
  void reset() const {
    for (Index i = 0; i < args.m; ++i)
      for (Index j = 0; j < args.n; ++j)
        at(i, j) = args.beta == 0.0 ? std::numeric_limits<T>::quiet_NaN() : before_[i * args.n + j];
  }
  T& at(Index i, Index j) const { return c_[i * args.c_row + j]; }

  // Exactly where units is 0.
  void check(double units) const {
    const Epilogue& e = args.epilogue;
    const std::string where = std::string(kernels().isa) + " " + std::to_string(args.m) + "x" +
                              std::to_string(args.n) + "x" + std::to_string(args.k);
    for (Index i = 0; i < args.m; ++i) {
      for (Index j = 0; j < args.n; ++j) {
        const Index at_ij = i * args.n + j;
        double want = args.beta == 0.0 ? 0.0 : args.beta * double(before_[at_ij]);
        for (Index p = 0; p < args.k; ++p) want += a_.at(i, p) * b_.at(p, j);
        if (e.bias) want += double(bias_[j]);
        if (e.kept_input)
          check_near<T>(where + " kept input", at_ij, double(kept_input_[at_ij]), want, units);
        if (e.activation >= 0) want = activation_value(Activations{}, e.activation, want);
        if (e.kept_output)
          check_near<T>(where + " kept output", at_ij, double(kept_output_[at_ij]), want, units);
        if (e.dropout) {
          const bool kept = philox_word(e.seed, e.offset, std::uint64_t(at_ij)) <= e.last_kept;
          want = kept ? want * e.kept_scale : 0.0;
        }
        if (e.gradient >= 0)
          want *= activation_slope(Activations{}, e.gradient, double(x_[at_ij]), double(y_[at_ij]));
        if (e.residual) want = double(residual_[at_ij]) + e.residual_scale * want;
        check_near<T>(where, at_ij, double(at(i, j)), want, units);
      }
      for (Index j = args.n; args.n > 0 && j < args.c_row && i + 1 < args.m; ++j) CHECK(at(i, j) == kGap);
    }
  }

 private:
  static constexpr T kGap = T(-12345);
  static constexpr double kParams[Names::kMax] = {0.5, 20.0};

  template <template <class> class... F>
  static double activation_value(Formulas<F...>, int formula, double x) {
    double value = 0;
    int at = 0;
    (void)((at++ == formula && (value = F<double>(kParams).value(x), true)) || ...);
    return value;
  }
  template <template <class> class... F>
  static double activation_slope(Formulas<F...>, int formula, double x, double y) {
    double slope = 0;
    int at = 0;
    (void)((at++ == formula && (slope = F<double>(kParams).grad(x, y), true)) || ...);
    return slope;
  }

  Matrix<T> a_, b_;
  Index padding_;
  Guarded<T> before_, c_, bias_, residual_, x_, y_, kept_input_, kept_output_;
};

template <class T>
void run_and_check(const Product<T>& product, double units) {
  product.reset();
  gemm(kDType<T>, product.args);
  product.check(units);
}

Index any_of(Random& random, const Index* sizes, std::size_t n) { return sizes[random.below(Index(n))]; }

// Any sizes and layouts. Formulas 0 and 1, relu and leaky_relu, are exact too.
template <class T>
void check_random_product(Random& random) {
  const Index m = any_of(random, kSizes, std::size(kSizes)), n = any_of(random, kSizes, std::size(kSizes));
  const Index k = any_of(random, kDepths, std::size(kDepths));
  Product<T> product(random, m, n, k, Layout(random.below(kLayouts)), Layout(random.below(kLayouts)));
  const std::uint64_t parts = random.bits();
  if (parts & 1) product.add_beta(random.integer(2));
  if (parts & 2) product.add_bias();
  if (parts & 4) product.add_activation(parts & 8 ? 0 : 1);
  if (parts & 16) product.add_dropout();
  if (parts & 32) product.add_gradient(parts & 64 ? 0 : 1);
  if (parts & 128) product.add_residual();
  product.args.bf16 = std::is_same_v<T, float> && (parts & 256);
  run_and_check(product, 0);
}

template <class T>
void check_every_layout(Random& random) {
  for (int a = 0; a < kLayouts; ++a)
    for (int b = 0; b < kLayouts; ++b) {
      run_and_check(Product<T>(random, 37, 51, 29, Layout(a), Layout(b)), 0);
      run_and_check(Product<T>(random, 1, 130, 77, Layout(a), Layout(b)), 0);
      run_and_check(Product<T>(random, 130, 1, 77, Layout(a), Layout(b)), 0);
    }
}

template <class T>
void check_every_activation(Random& random) {
  for (int formula = 0; formula < Activations::size; ++formula) {
    Product<T> forward(random, 19, 45, 3, Layout::rows, Layout::columns);
    forward.add_bias(), forward.add_activation(formula), forward.add_dropout(), forward.add_residual();
    run_and_check(forward, 64);
    Product<T> backward(random, 19, 45, 3, Layout::rows, Layout::rows);
    backward.add_dropout(), backward.add_gradient(formula);
    run_and_check(backward, 64);
  }
}

template <class T>
void check_empty(Random& random) {
  for (const auto& [m, n] : {std::pair<Index, Index>{0, 5}, {5, 0}, {0, 0}})
    run_and_check(Product<T>(random, m, n, 4, Layout::rows, Layout::rows), 0);
}

// More than one block in each direction, in parallel.
template <class T>
void check_blocks(Random& random) {
  constexpr Index kLarge[][3] = {
      {131, 517, 33}, {390, 67, 65}, {70, 90, 1100}, {1, 2050, 531}, {2050, 1, 531}};
  for (const auto& [m, n, k] : kLarge) {
    Product<T> product(random, m, n, k, Layout::padded_rows, Layout(random.below(2)));
    product.add_beta(1.0), product.add_bias(), product.add_activation(0);
    run_and_check(product, 0);
  }
}

// Numbers whose sums are rounded: no cut of C and no number of threads changes a bit.
template <class T>
void check_cuts(Random& random) {
  const Index m = 53, n = 150, k = 170;
  const Guarded<T> a = random.uniforms<T>(m * k, -1, 1), b = random.uniforms<T>(k * n, -1, 1);
  const Guarded<T> whole(m * n), other(m * n);
  GemmArgs args{m, n, k, {a.data(), k, 1}, {b.data(), n, 1}, whole.data(), n};
  const auto run = kernels().gemm[int(kDType<T>)].run;
  run(args, 0, m, 0, n, gemm_scratch());
  const auto same = [&] {
    return std::memcmp(whole.data(), other.data(), std::size_t(m * n) * sizeof(T)) == 0;
  };
  args.c = other.data();
  for (const int threads : {1, 2, 3, 5}) {
    set_num_threads(threads);
    gemm(kDType<T>, args);
    CHECK(same());
  }
  const Index columns = kernels().gemm[int(kDType<T>)].columns;
  for (const Index rows : {1, 5, 12, 40}) {
    std::memset(other.data(), 0, std::size_t(m * n) * sizeof(T));
    for (Index i = 0; i < m; i += rows)
      for (Index j = 0; j < n; j += columns)
        run(args, i, std::min(i + rows, m), j, std::min(j + columns, n), gemm_scratch());
    CHECK(same());
  }
}

// x w^T of a few rows: one thread computes its transpose, several share a packed x, parts of it do neither.
template <class T>
void check_ways_to_multiply(Random& random) {
  const Index m = 48, n = 1100, k = 2800;
  const Guarded<T> x = random.uniforms<T>(m * k, -1, 1), w = random.uniforms<T>(n * k, -1, 1),
                   bias = random.uniforms<T>(n, -1, 1);
  const Guarded<T> parts(m * n), whole(m * n);
  GemmArgs args{m, n, k, {x.data(), k, 1}, {w.data(), 1, k}, parts.data(), n};
  args.epilogue.bias = bias.data();
  const GemmKernels& kernel = kernels().gemm[int(kDType<T>)];
  CHECK(kernel.packed_a_size(args, n) == 0);  // turned
  CHECK(kernel.packed_a_size(args, 96) >= m * k);
  for (Index j = 0; j < n; j += kernel.columns)
    kernel.run(args, 0, m, j, std::min(j + kernel.columns, n), gemm_scratch());
  args.c = whole.data();
  for (const int threads : {1, 2, 3, 5}) {
    std::memset(whole.data(), 0, std::size_t(m * n) * sizeof(T));
    set_num_threads(threads);
    gemm(kDType<T>, args);
    CHECK(std::memcmp(whole.data(), parts.data(), std::size_t(m * n) * sizeof(T)) == 0);
  }
}

// Operands of which an eighth is not zero; lists of B's columns that all tasks share.
template <class T>
void check_zeros(Random& random) {
  const GemmKernels& kernel = kernels().gemm[int(kDType<T>)];
  const std::string_view isa = kernels().isa;
  const bool finds = isa == "v3" || isa == "v4";
  constexpr Index kSparse[][3] = {{64, 150, 300}, {37, 71, 1100}, {301, 65, 99}, {18, 600, 40}};
  for (const auto& [m, n, k] : kSparse) {
    Product<T> rows(random, m, n, k, Layout::padded_rows, Layout::columns, Zeros::rows);
    rows.add_beta(random.integer(1)), rows.add_bias();
    CHECK(kernel.find_zeros(rows.args) == (finds ? Zeros::rows : Zeros::none));
    run_and_check(rows, 0);
    Product<T> columns(random, m, n, k, Layout::columns, Layout::padded_rows, Zeros::columns);
    columns.add_beta(random.integer(1)), columns.add_activation(0);
    run_and_check(columns, 0);
    GemmArgs args = columns.args;
    args.zeros = kernel.find_zeros(args);
    CHECK(args.zeros == (finds ? Zeros::columns : Zeros::none));
    if (!finds) continue;
    const Guarded<char> lists(kernel.lists_bytes(args));
    const Index width = 2 * kernel.columns, height = 16;
    parallel_for((n + width - 1) / width, true, [&](Index i) {
      kernel.make_lists(args, i * width, std::min((i + 1) * width, n), lists.data());
    });
    args.lists = lists.data();
    columns.reset();
    parallel_for((m + height - 1) / height, true, [&](Index i) {
      kernel.run(args, i * height, std::min((i + 1) * height, m), 0, n, gemm_scratch());
    });
    columns.check(0);
  }
}

template <class T>
void check_type(Random& random) {
  check_zeros<T>(random);
  check_every_layout<T>(random);
  check_every_activation<T>(random);
  check_ways_to_multiply<T>(random);
  check_empty<T>(random);
  check_blocks<T>(random);
  for (int i = 0; i < 80; ++i) check_random_product<T>(random);
  check_cuts<T>(random);
}

}  // namespace

void test_gemm() {
  const int before = num_threads();
  set_num_threads(3);
  on_each_isa([] {
    Random random(5);
    check_type<float>(random);
    check_type<double>(random);
  });
  set_num_threads(before);
  const ChangingThreads changing;
  on_each_isa([] {
    in_threads(3, [](int t) {
      Random random(std::uint64_t(t) + 6);
      for (int i = 0; i < 40; ++i) check_random_product<float>(random), check_random_product<double>(random);
      check_blocks<float>(random);
      check_zeros<float>(random);
    });
  });
}

}  // namespace fastopt::test
