// A run of many steps, whose first layer lies in strips meanwhile, against as many runs of one step: the same
// bits of parameters, states, losses and squares, whatever the number of threads.
#include "core/strips.hpp"

#include <memory>
#include <string_view>

#include "core/parallel.hpp"
#include "core/program.hpp"
#include "plain.hpp"

namespace fastopt::test {
namespace {

// More than one block of inputs, and outputs that fill no strip.
constexpr Index kIn = 701, kHidden = 83, kOut = 10, kBatch = 40, kSteps = 9;

// linear - relu - dropout - linear, mean squared error and Adam.
template <class T>
class Training {
 public:
  // Of each sample one in `sparse` numbers is not zero. `last`: the rows of the last batch.
  Training(Index sparse, Index last, T weight) : samples_((kSteps - 1) * kBatch + last) {
    Random random(11);
    x_ = random.uniforms<T>(samples_ * kIn, 0, 1);
    for (Index i = 0; i < x_.size(); ++i)
      if (random.below(sparse) > 0) x_[i] = random.below(2) ? T(0) : -T(0);
    target_ = random.uniforms<T>(samples_ * kOut, -1, 1);
    order_ = Guarded<Index>(samples_);
    for (Index i = 0; i < samples_; ++i) order_[i] = (13 * i + 3) % samples_;
    const std::vector<double> row = coefficients<Adam>(false);
    for (Index s = 0; s < kSteps; ++s) coefs_.insert(coefs_.end(), row.begin(), row.end());
    std::vector<PlanTensor> tensors;
    for (const Index n : {kHidden * kIn, kHidden, kOut * kHidden, kOut}) {
      arrays_.push_back(random.uniforms<T>(n, -0.1, 0.1));
      for (int state = 0; state < 3; ++state) arrays_.emplace_back(n);
      Guarded<T>* const own = &arrays_[arrays_.size() - 4];
      tensors.push_back({own->data(), {own[1].data(), own[2].data()}, own[3].data(), n, kDType<T>});
    }
    arrays_[0][kIn + 5] = weight;
    plan_ = std::make_unique<StepPlan>(index_of<Adam>(Rules{}), std::move(tensors));
    const auto parameter = [&](Index i) {
      return ProgramParameter{plan_->tensors()[std::size_t(i)].p, nullptr, 0, i, 0};
    };
    std::vector<ProgramLayer> layers(2);
    for (ProgramLayer& layer : layers) layer.kind = LayerKind::linear;
    layers[0].in = kIn, layers[0].out = kHidden, layers[1].in = kHidden, layers[1].out = kOut;
    layers[0].weight = parameter(0), layers[0].bias = parameter(1);
    layers[1].weight = parameter(2), layers[1].bias = parameter(3);
    layers[0].activation = index_of<Relu>(Activations{});
    layers[0].needs_y = layers[0].dropout = true;
    std::vector<ProgramPlan> plans(1);
    plans[0] = {plan_.get(), 0, 1, Index(row.size()), {}};
    program_ =
        std::make_unique<Program>(kDType<T>, false, std::move(layers), ProgramLoss{}, std::move(plans));
  }

  void run(Index first, Index steps) {
    const double rate = 0.25;
    ProgramRun run{};
    run.x = x_.data(), run.target = target_.data(), run.order = order_.data(), run.repeat = 1;
    run.begin = first * kBatch, run.end = samples_, run.batch = kBatch, run.steps = steps;
    run.rates = &rate, run.seed = 3, run.offset = std::uint64_t(first);
    run.coefs = coefs_.data(), run.max_norm = kInfinity;
    run.losses = losses + first, run.squares = squares + first;
    CHECK(program_->run(run).reason == ProgramStop::none);
  }

  // Any NaN equals any other.
  void check_same(const Training& other) const {
    for (std::size_t k = 0; k < arrays_.size(); ++k)
      for (Index i = 0; i < arrays_[k].size(); ++i)
        check_near<T>("strips: array " + std::to_string(k), i, double(arrays_[k][i]),
                      double(other.arrays_[k][i]), 0);
    for (Index s = 0; s < kSteps; ++s) {
      check_near<T>("strips: loss", s, losses[s], other.losses[s], 0);
      check_near<T>("strips: squares", s, squares[s], other.squares[s], 0);
    }
  }

  Index shares() const { return program_->strip_shares(); }

  double losses[kSteps] = {}, squares[kSteps] = {};

 private:
  Index samples_;
  Guarded<T> x_, target_;
  Guarded<Index> order_;
  std::vector<double> coefs_;
  std::vector<Guarded<T>> arrays_;  // of each parameter: itself, two states, an average
  std::unique_ptr<StepPlan> plan_;
  std::unique_ptr<Program> program_;
};

template <class T>
void check_run(int threads, Index sparse, Index last, T weight) {
  set_num_threads(threads);
  Training<T> whole(sparse, last, weight), single(sparse, last, weight);
  whole.run(0, kSteps);
  for (Index s = 0; s < kSteps; ++s) single.run(s, 1);
  whole.check_same(single);
  const std::string_view isa = kernels().isa;
  CHECK((whole.shares() > 0) == ((isa == "v3" || isa == "v4") && sparse > 1));
  CHECK(single.shares() == 0);
  CHECK(std::isfinite(whole.losses[kSteps - 1]) == std::isfinite(weight));
}

template <class T>
void check_type() {
  for (const int threads : {1, 2, 3, 5}) check_run<T>(threads, 9, 31, T(0.1));
  // A last batch of few rows, whose sums go along k; samples without zeros; a weight that zeros do not hide.
  check_run<T>(2, 9, 7, T(0.1));
  check_run<T>(2, 1, 31, T(0.1));
  check_run<T>(2, 9, 31, std::numeric_limits<T>::infinity());
}

}  // namespace

void test_strips() {
  const int before = num_threads();
  on_each_isa([] { check_type<float>(), check_type<double>(); });
  set_num_threads(before);
}

}  // namespace fastopt::test
