// A training step as one program, linear - relu - dropout - linear, mean squared error and Adam, against
// plain loops in double: programs of several threads at once, and one that threads take turns with.
#include "core/program.hpp"

#include <memory>
#include <mutex>

#include "core/dropout.hpp"
#include "core/parallel.hpp"
#include "formulas/philox.hpp"
#include "plain.hpp"

namespace fastopt::test {
namespace {

constexpr double kDropped = 0.25;

// Batches whose layers follow one another, and larger ones of which tasks take rows through all layers and
// whose weights are updated on the pool.
constexpr Index kIn = 37, kHidden = 150, kOut = 10, kSamples = 200, kBatches[] = {33, 190};

// A parameter with its state, and the same in double.
template <class T>
struct Parameter {
  Guarded<T> p, first, second, grad;
  std::vector<Element> want;
  std::vector<double> want_grad;

  Parameter(Random& random, Index n)
      : p(random.uniforms<T>(n, -0.3, 0.3)), first(n), second(n), grad(n), want_grad(std::size_t(n)) {
    for (Index i = 0; i < n; ++i) want.push_back({double(p[i]), {}, 0.0});
  }
  double& grad_of(Index i) { return want_grad[std::size_t(i)]; }
  double value(Index i) const { return want[std::size_t(i)].p; }
};

template <class T>
class Training {
 public:
  // With `fused` gradients exist only inside of the update.
  Training(std::uint64_t seed, Index batch, bool fused) : Training(Random(seed), batch, fused) {}

  // One step on the samples from `begin` on, the last batch being shorter.
  void step(Index begin) {
    const double rate = kDropped;
    double loss = 0.0;
    ProgramRun run{};
    run.x = x_.data(), run.target = target_.data(), run.order = order_.data(), run.repeat = 1;
    run.begin = begin, run.end = kSamples, run.batch = batch_, run.steps = 1;
    run.rates = &rate, run.seed = 3, run.offset = 4;
    run.coefs = coefs_.data(), run.max_norm = kInfinity, run.losses = &loss;
    CHECK(program_->run(run).reason == ProgramStop::none);
    loss_ = loss;
  }

  void plain_step(Index begin) {
    const Index rows = std::min(batch_, kSamples - begin);
    std::vector<double> z(std::size_t(rows * kHidden)), slope(z.size()), out(std::size_t(rows * kOut));
    for (Parameter<T>& p : parameters_) std::fill(p.want_grad.begin(), p.want_grad.end(), 0.0);
    Parameter<T>&w1 = parameters_[0], &b1 = parameters_[1], &w2 = parameters_[2], &b2 = parameters_[3];
    want_loss_ = 0.0;
    const Kept stays = kept(kDropped);
    for (Index r = 0; r < rows; ++r) {
      const T* x = x_.data() + order_[begin + r] * kIn;
      for (Index h = 0; h < kHidden; ++h) {
        const std::size_t at = std::size_t(r * kHidden + h);
        double sum = b1.value(h);
        for (Index i = 0; i < kIn; ++i) sum += double(x[i]) * w1.value(h * kIn + i);
        const double scale = philox_word(3, 4, at) <= stays.last ? stays.scale : 0.0;
        slope[at] = sum > 0 ? scale : 0.0;
        z[at] = sum * slope[at];
      }
      for (Index o = 0; o < kOut; ++o) {
        double sum = b2.value(o);
        for (Index h = 0; h < kHidden; ++h)
          sum += z[std::size_t(r * kHidden + h)] * w2.value(o * kHidden + h);
        const double miss = sum - double(target_[order_[begin + r] * kOut + o]);
        want_loss_ += miss * miss / double(rows * kOut);
        out[std::size_t(r * kOut + o)] = 2 * miss / double(rows * kOut);
      }
    }
    for (Index r = 0; r < rows; ++r) {
      const T* x = x_.data() + order_[begin + r] * kIn;
      for (Index h = 0; h < kHidden; ++h) {
        const std::size_t at = std::size_t(r * kHidden + h);
        double back = 0.0;
        for (Index o = 0; o < kOut; ++o) {
          const double g = out[std::size_t(r * kOut + o)];
          back += g * w2.value(o * kHidden + h);
          w2.grad_of(o * kHidden + h) += g * z[at];
        }
        back *= slope[at];
        b1.grad_of(h) += back;
        for (Index i = 0; i < kIn; ++i) w1.grad_of(h * kIn + i) += back * double(x[i]);
      }
      for (Index o = 0; o < kOut; ++o) b2.grad_of(o) += out[std::size_t(r * kOut + o)];
    }
    for (Parameter<T>& p : parameters_)
      for (std::size_t i = 0; i < p.want.size(); ++i)
        test::plain_step<Adam>(coefs_, p.want_grad[i], p.want[i]);
  }

  void check() {
    constexpr double kUnits = 1000;
    check_near<T>("program loss", 0, loss_, want_loss_, kUnits);
    for (std::size_t k = 0; k < parameters_.size(); ++k)
      for (Index i = 0; i < parameters_[k].p.size(); ++i) {
        const Element& want = parameters_[k].want[std::size_t(i)];
        check_near<T>("program parameter " + std::to_string(k), i, double(parameters_[k].p[i]), want.p,
                      kUnits);
        check_near<T>("program state", i, double(parameters_[k].first[i]), want.state[0], kUnits);
        check_near<T>("program state", i, double(parameters_[k].second[i]), want.state[1], kUnits);
      }
  }

 private:
  Training(Random random, Index batch, bool fused)
      : batch_(batch),
        x_(random.uniforms<T>(kSamples * kIn, -1, 1)),
        target_(random.uniforms<T>(kSamples * kOut, -1, 1)),
        order_(kSamples),
        coefs_(coefficients<Adam>(false)) {
    for (Index i = 0; i < kSamples; ++i) order_[i] = (7 * i + 3) % kSamples;
    std::vector<PlanTensor> tensors;
    for (const Index n : {kHidden * kIn, kHidden, kOut * kHidden, kOut}) {
      const Parameter<T>& p = parameters_.emplace_back(random, n);
      tensors.push_back({p.p.data(), {p.first.data(), p.second.data()}, nullptr, n, kDType<T>});
    }
    plan_ = std::make_unique<StepPlan>(index_of<Adam>(Rules{}), std::move(tensors));
    const auto parameter = [&](std::size_t i) {
      const Parameter<T>& p = parameters_[i];
      return ProgramParameter{p.p.data(), fused ? nullptr : p.grad.data(), 0, Index(i), 0};
    };
    std::vector<ProgramLayer> layers(2);
    for (ProgramLayer& layer : layers) layer.kind = LayerKind::linear;
    layers[0].in = kIn, layers[0].out = kHidden, layers[1].in = kHidden, layers[1].out = kOut;
    layers[0].weight = parameter(0), layers[0].bias = parameter(1);
    layers[1].weight = parameter(2), layers[1].bias = parameter(3);
    layers[0].activation = index_of<Relu>(Activations{});
    layers[0].needs_y = layers[0].dropout = true;
    std::vector<ProgramPlan> plans(1);
    plans[0] = {plan_.get(), 0, 1, Index(coefs_.size()), {}};
    program_ =
        std::make_unique<Program>(kDType<T>, false, std::move(layers), ProgramLoss{}, std::move(plans));
  }

  Index batch_;
  Guarded<T> x_, target_;
  Guarded<Index> order_;
  std::vector<double> coefs_;
  std::vector<Parameter<T>> parameters_;
  std::unique_ptr<StepPlan> plan_;
  std::unique_ptr<Program> program_;
  double loss_ = 0.0, want_loss_ = 0.0;
};

template <class T>
void check_programs(Index batch, bool fused) {
  constexpr int kThreads = 3;
  in_threads(kThreads, [&](int t) {
    Training<T> own(std::uint64_t(t) + 1, batch, fused);
    for (const Index begin : {Index(0), kSamples - 7, Index(0)}) {
      own.step(begin);
      own.plain_step(begin);
      own.check();
    }
  });
  // As the bindings do, one thread at a time. All steps are the same, so their order is no matter.
  Training<T> shared(9, batch, fused);
  std::mutex mutex;
  in_threads(kThreads, [&](int) {
    for (int s = 0; s < 2; ++s) {
      const std::lock_guard<std::mutex> lock(mutex);
      shared.step(0);
    }
  });
  for (int s = 0; s < 2 * kThreads; ++s) shared.plain_step(0);
  shared.check();
}

}  // namespace

void test_program() {
  const ChangingThreads changing;
  on_each_isa([] {
    for (const Index batch : kBatches)
      for (const bool fused : {true, false})
        check_programs<float>(batch, fused), check_programs<double>(batch, fused);
  });
}

}  // namespace fastopt::test
