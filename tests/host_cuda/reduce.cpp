// The CUDA reduce driver against the CPU's: norms of a plan's gradients, sums and norms of arrays with the
// same bits; sums of columns.
#include "bits.hpp"
#include "core/chunks.hpp"
#include "parts.hpp"
#include "plain.hpp"

namespace fastopt::test {
namespace {

bool same(double got, double want) {
  return std::memcmp(&got, &want, sizeof got) == 0 || (is_nan(got) && is_nan(want));
}

// Gradients of several storage types; every fifth is missing.
class Gradients {
 public:
  template <class S>
  void add(const Guarded<S>& g) {
    tensors.push_back({g.data(), {}, nullptr, g.size(), kDType<S>});
    grads.push_back(tensors.size() % 5 == 2 ? nullptr : g.data());
  }
  std::vector<PlanTensor> tensors;
  std::vector<const void*> grads;
};

void check_norms_of_each(const Gradients& gradients, DevicePlan& cuda, StepPlan& cpu) {
  const Index n = Index(gradients.tensors.size());
  for (const bool of_params : {false, true, false}) {
    const Guarded<double> got(n, -1.0), want(n, -2.0);
    if (of_params) {
      cuda.param_norms(got.data(), nullptr);
      cpu.param_norms(want.data());
    } else {
      const std::vector<const void*> grads = gradients.grads;  // gone when the kernel might read it
      cuda.norms_from_host(grads.data(), got.data(), nullptr);
      cpu.norms(grads.data(), want.data());
    }
    for (Index t = 0; t < n; ++t) CHECK(same(got[t], want[t]));
  }
}

void check_norms(const Gradients& gradients) {
  constexpr struct {
    Monoid monoid;
    double ord, max_norm;
  } kNorms[] = {{Monoid::abs_sum, 1.0, 1e9},
                {Monoid::sum_squares, 2.0, 0.5},
                {Monoid::abs_max, kInfinity, kInfinity},
                {Monoid::abs_max, kInfinity, 0.5}};
  DevicePlan cuda(0, gradients.tensors);
  StepPlan cpu(0, gradients.tensors);
  for (const auto& [monoid, ord, max_norm] : kNorms) {
    double norm = -1, grad_scale = -1;
    std::int32_t found_inf = -1;
    cuda.norm(monoid, {gradients.grads.data(), max_norm, &norm, &grad_scale, &found_inf}, nullptr);
    const double want = cpu.norm(gradients.grads.data(), ord);
    CHECK(same(norm, want));
    CHECK(same(grad_scale, max_norm == kInfinity ? 1.0 : clip_factor(want, max_norm)));
    CHECK(found_inf == !std::isfinite(want));
    norm = -1;
    {
      const std::vector<const void*> grads = gradients.grads;  // gone when the kernel might read it
      cuda.norm_from_host(monoid, {grads.data(), max_norm, &norm}, nullptr);
    }
    CHECK(same(norm, want));
  }
  cuda.norm(Monoid::abs_max, {gradients.grads.data(), 1.0}, nullptr);  // nothing is wanted
  check_norms_of_each(gradients, cuda, cpu);
}

template <class S>
void check_storage(Random& random) {
  for (const Index n : {0, 1, 15, 16, 17, 511, 512, 513, 8191, 8192, 8193, 30001}) {
    Gradients gradients;
    const Guarded<S> g = random.uniforms<S>(n, -3, 3);
    gradients.add(g);
    check_norms(gradients);
    if (n == 0) continue;
    constexpr double kSpecial[] = {kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN()};
    g[random.below(n)] = Store<S>::from(Compute<S>(kSpecial[n % 3]));
    check_norms(gradients);
  }
}

// More chunks than a block has threads, of all storage types.
void check_many(Random& random) {
  std::vector<Guarded<float>> f32;
  std::vector<Guarded<double>> f64;
  std::vector<Guarded<Bf16>> bf16;
  std::vector<Guarded<F16>> f16;
  Gradients gradients;
  for (int t = 0; t < 60; ++t) {
    const Index n = random.below(20000);
    gradients.add(f32.emplace_back(random.uniforms<float>(n, -1, 1)));
    gradients.add(f64.emplace_back(random.uniforms<double>(n / 2, -1, 1)));
    gradients.add(bf16.emplace_back(random.uniforms<Bf16>(n, -1, 1)));
    gradients.add(f16.emplace_back(random.uniforms<F16>(n / 3, -1, 1)));
  }
  check_norms(gradients);
}

constexpr Index kReduced[] = {0,
                              1,
                              7,
                              8,
                              9,
                              15,
                              16,
                              17,
                              31,
                              33,
                              1023,
                              8191,
                              8192,
                              8193,
                              100003,
                              8192 * 127,
                              8192 * 128 + 1,
                              8192 * 129,
                              8192 * 300 + 5};

template <class M = Sum<double>, class F>
double in_chunks(Index n, F f) {
  std::vector<double> parts;
  return merge_chunks<M>(n, kChunk, n, parts, f);
}

template <class S>
void check_sums(Random& random) {
  for (const Index n : kReduced) {
    if (n > 200000 && !std::is_same_v<S, float>) continue;
    const Guarded<S> x = random.uniforms<S>(n, -3, 3), y = random.uniforms<S>(n, -3, 3);
    const Guarded<double> out(1, -1.0);
    std::vector<char> scratch(std::size_t(sum_scratch_bytes(n)), 0);
    for (const Monoid monoid : {Monoid::sum, Monoid::abs_sum, Monoid::sum_squares, Monoid::abs_max}) {
      reduce_on_device(kDType<S>, monoid, x.data(), n, out.data(), scratch.data(), nullptr);
      const auto kernel = kernels().reduce[int(monoid)].at[int(kDType<S>)];
      const auto chunk = [&](Index begin, Index end) { return kernel(x.data() + begin, end - begin); };
      CHECK(same(out[0],
                 monoid == Monoid::abs_max ? in_chunks<AbsMax<double>>(n, chunk) : in_chunks(n, chunk)));
    }
    dot_on_device(kDType<S>, x.data(), y.data(), n, out.data(), scratch.data(), nullptr);
    if constexpr (std::is_same_v<S, Compute<S>>) {
      const auto kernel = kernels().sums[int(kDType<S>)].dot;
      CHECK(same(out[0], in_chunks(n, [&](Index begin, Index end) {
                   return kernel(x.data() + begin, y.data() + begin, end - begin);
                 })));
    }
    for (int i = 0; i < 64; ++i) CHECK(scratch[std::size_t(i)] == 0);
  }
}

template <class S>
void check_column_sums(Random& random) {
  constexpr Index kColumns[] = {1, 2, 10, 31, 32, 33, 100, 1000}, kRows[] = {0, 1, 7, 255, 256, 257, 700};
  for (const Index columns : kColumns)
    for (const Index rows : kRows)
      for (const bool add : {false, true}) {
        // Integers, whose sums are exact.
        const Guarded<S> x = random.integers<S>(rows * columns, 2), out = random.integers<S>(columns, 4),
                         want(columns);
        for (Index c = 0; c < columns; ++c) {
          double sum = 0.0;
          for (Index r = 0; r < rows; ++r) sum += double(load(x[r * columns + c]));
          using T = Compute<S>;
          want[c] = Store<S>::from(add ? load(out[c]) + T(sum) : T(sum));
        }
        std::vector<char> scratch(std::size_t(column_sums_scratch_bytes(rows, columns)), 0);
        column_sums_on_device(kDType<S>, x.data(), rows, columns, out.data(), add, scratch.data(), nullptr);
        check_same("column_sums", out, want);
        for (int i = 0; i < 64; ++i) CHECK(scratch[std::size_t(i)] == 0);
      }
}

// More rows than bands of the least height.
void check_tall(Random& random) {
  const Index rows = 20000, columns = 3;
  const Guarded<double> x = random.integers<double>(rows * columns, 9), out(columns, 0.0), want(columns, 0.0);
  for (Index i = 0; i < rows * columns; ++i) want[i % columns] += x[i];
  std::vector<char> scratch(std::size_t(column_sums_scratch_bytes(rows, columns)), 0);
  column_sums_on_device(DType::f64, x.data(), rows, columns, out.data(), false, scratch.data(), nullptr);
  check_same("column_sums", out, want);
}

template <class S>
void check_arrays(Random& random) {
  check_sums<S>(random);
  check_column_sums<S>(random);
}

}  // namespace

void test_cuda_reduce() {
  Random random(13);
  check_storage<float>(random);
  check_storage<double>(random);
  check_storage<Bf16>(random);
  check_storage<F16>(random);
  check_many(random);
  check_arrays<float>(random);
  check_arrays<double>(random);
  check_arrays<Bf16>(random);
  check_arrays<F16>(random);
  check_tall(random);
}

}  // namespace fastopt::test
