// Norms of a plan's gradients by the CUDA reduce driver against the CPU's plan: the same bits.
#include "bits.hpp"
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
    tensors.push_back({nullptr, {}, nullptr, g.size(), kDType<S>});
    grads.push_back(tensors.size() % 5 == 2 ? nullptr : g.data());
  }
  std::vector<PlanTensor> tensors;
  std::vector<const void*> grads;
};

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

}  // namespace

void test_cuda_reduce() {
  Random random(13);
  check_storage<float>(random);
  check_storage<double>(random);
  check_storage<Bf16>(random);
  check_storage<F16>(random);
  check_many(random);
}

}  // namespace fastopt::test
