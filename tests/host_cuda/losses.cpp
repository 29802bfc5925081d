// The CUDA losses against the CPU's kernels: values, gradients and sums have the same bits, and those of
// narrow types are the float's, rounded.
#include <vector>

#include "bits.hpp"
#include "core/chunks.hpp"
#include "formulas/registry.hpp"
#include "parts.hpp"

namespace fastopt::test {
namespace {

constexpr double kParams[Names::kMax] = {0.75, 1.5, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75};

template <class S>
Guarded<Compute<S>> staged(const Guarded<S>& x) {
  Guarded<Compute<S>> y(x.size());
  for (Index i = 0; i < x.size(); ++i) y[i] = load(x[i]);
  return y;
}
template <class S>
Guarded<S> delivered(const Guarded<Compute<S>>& x) {
  Guarded<S> y(x.size());
  for (Index i = 0; i < x.size(); ++i) y[i] = Store<S>::from(x[i]);
  return y;
}

template <class S>
void check_loss(int formula, bool has_param, const std::string& what, Random& random) {
  using T = Compute<S>;
  for (const Index n : {0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 1023, 8192, 8193, 100003}) {
    if (n > 20000 && formula != 0) continue;
    for (const int way : {0, 1, 2, 3}) {  // plain, weights, weights and a parameter each, in place and no sum
      if (way == 2 && !has_param) continue;
      const Guarded<S> x = random.uniforms<S>(n, 0.01, 0.99), t = random.uniforms<S>(n, 0, 1);
      const Guarded<S> weight = random.uniforms<S>(n, 0, 2), param = random.uniforms<S>(n, 0.5, 2);
      const Guarded<S> value(n), grad = copy(x), sum(1, Store<S>::from(T(-1)));
      const Guarded<T> cpu_x = staged(x), cpu_t = staged(t), cpu_weight = staged(weight),
                       cpu_param = staged(param);
      const Guarded<T> cpu_value(n), cpu_grad(n), cpu_sum(1);
      const double divisor = 3.0;
      LossArgs args{formula,
                    kParams,
                    way == 3 ? grad.data() : x.data(),
                    t.data(),
                    way == 0 ? nullptr : weight.data(),
                    way == 2 ? param.data() : nullptr,
                    value.data(),
                    grad.data(),
                    1.0};
      std::vector<char> scratch(std::size_t(sum_scratch_bytes(n)), 0);
      loss_on_device(kDType<S>, args, n, {way == 3 ? nullptr : sum.data(), 2.0, &divisor}, scratch.data(),
                     nullptr);
      args.x = cpu_x.data(), args.t = cpu_t.data(), args.value = cpu_value.data(),
      args.grad = cpu_grad.data();
      if (args.weight) args.weight = cpu_weight.data();
      if (args.param) args.param = cpu_param.data();
      args.grad_scale = 1.0 / divisor;
      const auto kernel = kernels().sums[int(kDType<T>)].loss;
      std::vector<double> parts;
      const double total =
          merge_chunks(n, kChunk, n, parts, [&](Index begin, Index end) { return kernel(args, begin, end); });
      check_same(what + " value", value, delivered<S>(cpu_value));
      check_same(what + " gradient", grad, delivered<S>(cpu_grad));
      cpu_sum[0] = way == 3 ? T(-1) : T(total / 2.0 / divisor);
      check_same(what + " sum", sum, delivered<S>(cpu_sum));
    }
  }
}

template <class S, template <class> class... F>
void check_losses(Formulas<F...>, Random& random) {
  int formula = 0;
  (check_loss<S>(formula++, requires { F<Compute<S>>(Compute<S>(1)); }, F<double>::name, random), ...);
}

}  // namespace

void test_cuda_losses() {
  Random random(16);
  check_losses<float>(Losses{}, random);
  check_losses<double>(Losses{}, random);
  check_losses<Bf16>(Losses{}, random);
  check_losses<F16>(Losses{}, random);
}

}  // namespace fastopt::test
