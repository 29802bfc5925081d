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

constexpr Index kOut = 10, kBatch = 40, kSteps = 9;

struct Case {
  Index in = 701, hidden = 83;       // more than one block of inputs, and outputs that fill no strip
  Index sparse = 9;                  // of each sample one in so many numbers is not zero
  Index last = 31;                   // rows of the last batch
  double weight = 0.1;               // one of the first layer's, by a number that is always 0
  double number = 0.5;               // one of a sample of the last batch
  double eps = 0.01, growth = 0.99;  // of all weights in each step
  bool ordered = true;
  bool finite = true, strips = true;  // to be expected of the loss, and of levels that leave zeros out
};

// linear - relu - dropout - linear, mean squared error and Adam.
template <class T>
class Training {
 public:
  explicit Training(const Case& c) : ordered_(c.ordered), samples_((kSteps - 1) * kBatch + c.last) {
    Random random(11);
    x_ = random.uniforms<T>(samples_ * c.in, 0, 1);
    for (Index i = 0; i < x_.size(); ++i)
      if (random.below(c.sparse) > 0) x_[i] = random.below(2) ? T(0) : -T(0);
    for (Index i = 0; i < samples_; ++i) x_[i * c.in + 5] = T(0);
    target_ = random.uniforms<T>(samples_ * kOut, -1, 1);
    order_ = Guarded<Index>(samples_);
    for (Index i = 0; i < samples_; ++i) order_[i] = ordered_ ? (11 * i + 3) % samples_ : i;
    x_[order_[(kSteps - 1) * kBatch + 1] * c.in + 7] = T(c.number);
    std::vector<double> row = coefficients<Adam>(false);
    row[kCommonCoefs + 3] = row[kCommonCoefs + 4] = c.eps;
    row[5] = c.growth;
    for (Index s = 0; s < kSteps; ++s) coefs_.insert(coefs_.end(), row.begin(), row.end());
    std::vector<PlanTensor> tensors;
    for (const Index n : {c.hidden * c.in, c.hidden, kOut * c.hidden, kOut}) {
      arrays_.push_back(random.uniforms<T>(n, -0.1, 0.1));
      for (int state = 0; state < 3; ++state) arrays_.emplace_back(n);
      Guarded<T>* const own = &arrays_[arrays_.size() - 4];
      tensors.push_back({own->data(), {own[1].data(), own[2].data()}, own[3].data(), n, kDType<T>});
    }
    arrays_[0][c.in + 5] = T(c.weight);
    plan_ = std::make_unique<StepPlan>(index_of<Adam>(Rules{}), std::move(tensors));
    const auto parameter = [&](Index i) {
      return ProgramParameter{plan_->tensors()[std::size_t(i)].p, nullptr, 0, i, 0};
    };
    std::vector<ProgramLayer> layers(2);
    for (ProgramLayer& layer : layers) layer.kind = LayerKind::linear;
    layers[0].in = c.in, layers[0].out = c.hidden, layers[1].in = c.hidden, layers[1].out = kOut;
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
    run.x = x_.data(), run.target = target_.data(), run.order = ordered_ ? order_.data() : nullptr;
    run.repeat = 1;
    run.begin = first * kBatch, run.end = samples_, run.batch = kBatch, run.steps = steps;
    run.rates = &rate, run.seed = 3, run.offset = std::uint64_t(first);
    run.coefs = coefs_.data(), run.max_norm = kInfinity;
    run.losses = losses + first, run.squares = squares + first;
    CHECK(program_->run(run).reason == ProgramStop::none);
    CHECK(plan_->lock().owns_lock());
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
  bool ordered_;
  Index samples_;
  Guarded<T> x_, target_;
  Guarded<Index> order_;
  std::vector<double> coefs_;
  std::vector<Guarded<T>> arrays_;  // of each parameter: itself, two states, an average
  std::unique_ptr<StepPlan> plan_;
  std::unique_ptr<Program> program_;
};

// Twice, the second time with other threads, whose strips are others.
template <class T>
void check_run(const Case& c, int threads = 2, int then = 1) {
  Training<T> whole(c), single(c);
  const std::string_view isa = kernels().isa;
  for (const int n : {threads, then}) {
    set_num_threads(n);
    whole.run(0, kSteps);
    for (Index s = 0; s < kSteps; ++s) single.run(s, 1);
    whole.check_same(single);
    CHECK((whole.shares() > 0) == ((isa == "v3" || isa == "v4") && c.strips));
    CHECK(single.shares() == 0);
    CHECK(std::isfinite(whole.losses[kSteps - 1]) == c.finite);
  }
}

template <class T>
void check_type() {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  for (const int threads : {1, 2, 3, 5}) check_run<T>({}, threads, 6 - threads);
  // One block of inputs that fill their lines, and outputs that fill strips, of which there are several
  // passes.
  check_run<T>({.in = 256, .hidden = 160});
  check_run<T>({.in = 258, .hidden = 161, .ordered = false});
  check_run<T>({.last = 7});  // whose sums go along k
  check_run<T>({.sparse = 1, .strips = false});
  check_run<T>({.hidden = 16, .strips = false});
  // Zeros hide neither a weight nor a gradient that is not finite, nor weights that become so.
  check_run<T>({.weight = kInfinity, .finite = false});
  check_run<T>({.number = -kInfinity, .finite = false});
  check_run<T>({.number = kNaN, .finite = false});
  check_run<T>({.weight = double(std::numeric_limits<T>::max()) / 4, .growth = 1.3, .finite = false});
  // Weights that do not exist have become NaN: 0 / 0.
  check_run<T>({.eps = 0.0});
}

// While others change the number of threads, strips and tasks are cut for whatever it is.
template <class T>
void check_changes() {
  const ChangingThreads changing;
  Training<T> whole({}), single({});
  for (int i = 0; i < 20; ++i) {
    whole.run(0, kSteps);
    for (Index s = 0; s < kSteps; ++s) single.run(s, 1);
    whole.check_same(single);
  }
}

}  // namespace

void test_strips() {
  const int before = num_threads();
  on_each_isa([] {
    check_type<float>(), check_type<double>();
    check_changes<float>();
  });
  set_num_threads(before);
}

}  // namespace fastopt::test
