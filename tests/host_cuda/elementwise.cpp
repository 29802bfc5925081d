// The CUDA elementwise driver against the CPU's kernels, every formula and storage type: the same bits.
#include "bits.hpp"
#include "formulas/registry.hpp"
#include "parts.hpp"

namespace fastopt::test {
namespace {

constexpr double kParams[Names::kMax] = {0.75, 1.5, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75};

template <class S>
const ElementwiseKernels& on_cpu() {
  return kernels().elementwise[int(kDType<S>)];
}

// n numbers and what lies behind them, aligned for packs or not.
template <class S>
Guarded<S> input(Random& random, Index n, bool aligned) {
  return any_numbers<S>(random, padded(n, aligned));
}

// With and without a bias of a few and of many columns, into an array of its own and in place.
template <class S>
void check_activation(int formula, const std::string& what, Random& random) {
  for (const Index n : kSizes)
    for (const bool aligned : {true, false})
      for (const Index columns : {0, 1, 3, 100}) {
        if (formula < 0 && columns == 0) continue;
        const Index size = columns ? n / columns * columns : n;
        const Guarded<S> x = input<S>(random, size, aligned), bias = any_numbers<S>(random, columns);
        const Guarded<S> got = copy(x), want = copy(x);
        ActivationArgs args{formula, kParams, x.data(), columns ? bias.data() : nullptr, columns, got.data()};
        if (columns == 3) args.x = got.data();
        activation_on_device(kDType<S>, args, size, nullptr);
        args.y = want.data();
        if (columns == 3) args.x = want.data();
        on_cpu<S>().activation(args, 0, size);
        check_same(what, got, want);
      }
}

template <template <class> class F, class S>
void check_grad(int formula, Random& random) {
  using Formula = F<double>;
  for (const Index n : kSizes)
    for (const int odd : {-1, 0, 1, 2}) {  // the array that is not aligned
      const Guarded<S> dy = input<S>(random, n, odd != 0), in = input<S>(random, n, odd != 1);
      const Guarded<S> got = input<S>(random, n, odd != 2), want = copy(got);
      ActivationGradArgs args{formula,
                              kParams,
                              dy.data(),
                              Formula::grad_needs_x ? in.data() : nullptr,
                              Formula::grad_needs_y ? in.data() : nullptr,
                              got.data()};
      activation_grad_on_device(kDType<S>, args, n, nullptr);
      args.dx = want.data();
      on_cpu<S>().activation_grad(args, 0, n);
      check_same(std::string(Formula::name) + " gradient", got, want);
    }
}

template <class S, template <class> class... F>
void check_activations(Formulas<F...>, Random& random) {
  int formula = 0;
  ((check_activation<S>(formula, F<double>::name, random), check_grad<F, S>(formula, random), ++formula),
   ...);
}

template <class S>
void check_dropout(Random& random) {
  for (const Index n : kSizes)
    for (const bool aligned : {true, false}) {
      const Guarded<S> x = input<S>(random, n, aligned), got = input<S>(random, n, aligned), want = copy(got);
      DropoutArgs args{x.data(), got.data(), random.bits(), random.bits(), 0x60000000, 1.6};
      const std::uint64_t mask_offset = random.bits();
      dropout_on_device(kDType<S>, args, n, aligned ? &mask_offset : nullptr, nullptr);
      if (aligned) args.offset += mask_offset;
      args.y = want.data();
      on_cpu<S>().dropout(args, 0, n);
      check_same("dropout", got, want);
    }
}

template <class S>
void check_axpy(Random& random) {
  for (const Index n : kSizes)
    for (const int odd : {-1, 0, 1}) {  // the array that is not aligned
      const Guarded<S> x = input<S>(random, n, odd != 0), got = input<S>(random, n, odd != 1),
                       want = copy(got);
      axpy_on_device(kDType<S>, 0.3, x.data(), got.data(), n, nullptr);
      on_cpu<S>().axpy(0.3, x.data(), want.data(), 0, n);
      check_same("axpy", got, want);
    }
}

// More packs than a launch has threads.
void check_large(Random& random) {
  const Index n = Index(4096) * 256 * 4 + 1029, columns = 1 << 10;
  const Guarded<float> x = random.uniforms<float>(padded(n, true), -4, 4), got(x.size()), want(x.size());
  const Guarded<float> bias = random.uniforms<float>(columns, -1, 1);
  ActivationArgs args{0, kParams, x.data(), bias.data(), columns, got.data()};
  activation_on_device(DType::f32, args, n, nullptr);
  args.y = want.data();
  on_cpu<float>().activation(args, 0, n);
  check_same("large", got, want);
}

template <class S>
void check_storage(Random& random) {
  check_activation<S>(-1, "bias", random);
  check_activations<S>(Activations{}, random);
  check_dropout<S>(random);
  check_axpy<S>(random);
}

}  // namespace

void test_cuda_elementwise() {
  Random random(12);
  check_storage<float>(random);
  check_storage<double>(random);
  check_storage<Bf16>(random);
  check_storage<F16>(random);
  check_large(random);
}

}  // namespace fastopt::test
