// Optimizer steps: each rule's kernel, and step plans used from several threads, against a plain loop over
// the elements.
#include <memory>

#include "core/parallel.hpp"
#include "core/plan.hpp"
#include "plain.hpp"

namespace fastopt::test {
namespace {

// A parameter with its gradient, state and average.
template <class S>
struct Tensor {
  using State = std::conditional_t<std::is_same_v<S, double>, double, float>;
  Guarded<S> p, g;
  std::vector<Guarded<State>> states;
  Guarded<State> ema;

  Tensor(Random& random, Index n, int states_size)
      : p(random.uniforms<S>(n, -1, 1)),
        g(random.uniforms<S>(n, -0.25, 0.25)),
        ema(random.uniforms<State>(n, -1, 1)) {
    for (int s = 0; s < states_size; ++s) states.push_back(random.uniforms<State>(n, 0.3, 0.5));
  }

  Element element(Index i) const {
    Element e{double(load(p[i])), {}, double(ema[i])};
    for (std::size_t s = 0; s < states.size(); ++s) e.state[s] = double(states[s][i]);
    return e;
  }
  std::vector<Element> elements() const {
    std::vector<Element> all;
    for (Index i = 0; i < p.size(); ++i) all.push_back(element(i));
    return all;
  }
  void check(const std::string& what, const std::vector<Element>& want, bool with_ema, double units) const {
    for (Index i = 0; i < p.size(); ++i) {
      const Element got = element(i), &e = want[std::size_t(i)];
      check_near<S>(what + " p", i, got.p, e.p, sizeof(S) == 2 ? 1 : units);
      for (std::size_t s = 0; s < states.size(); ++s)
        check_near<State>(what + " state", i, got.state[s], e.state[s], units);
      if (with_ema) check_near<State>(what + " ema", i, got.ema, e.ema, units);
    }
  }
};

template <template <class> class Rule, class S>
void check_kernel(int rule, Random& random) {
  for (const bool with_ema : {false, true})
    for (const bool bounded : {false, true})
      for (const Index n : {0, 1, 3, 8, 15, 16, 17, 31, 33, 65, 131}) {
        const std::vector<double> coefs = coefficients<Rule>(bounded);
        const Tensor<S> tensor(random, n, Rule<double>::states.size);
        std::vector<Element> want = tensor.elements();
        for (Index i = 0; i < n; ++i)
          plain_step<Rule>(coefs, double(load(tensor.g[i])), want[std::size_t(i)]);
        StepChunk chunk{tensor.p.data(), tensor.g.data(), {}, with_ema ? tensor.ema.data() : nullptr, n};
        for (std::size_t s = 0; s < tensor.states.size(); ++s) chunk.states[s] = tensor.states[s].data();
        kernels().step[rule].at[int(kDType<S>)].at[with_ema][bounded](chunk, coefs.data());
        tensor.check(std::string(kernels().isa) + " " + Rule<double>::name, want, with_ema, 64);
      }
}

template <template <class> class... Rule>
void check_kernels(Formulas<Rule...>) {
  Random random(1);
  int rule = 0;
  ((check_kernel<Rule, float>(rule, random), check_kernel<Rule, double>(rule, random), ++rule), ...);
}

// Tensors on both sides of a chunk's size, one without a gradient, and a plan of them. Odd ones take the
// second row of coefficients, which clips.
template <template <class> class Rule, class S>
class Planned {
 public:
  explicit Planned(std::uint64_t seed) {
    Random random(seed);
    std::vector<PlanTensor> plan;
    for (const Index n : {Index(5), kChunk - 1, Index(0), kChunk + 1, 2 * kChunk, Index(33)}) {
      const Tensor<S>& t = tensors_.emplace_back(random, n, Rule<double>::states.size);
      PlanTensor entry{t.p.data(), {}, t.ema.data(), n, kDType<S>};
      for (std::size_t s = 0; s < t.states.size(); ++s) entry.states[s] = t.states[s].data();
      plan.push_back(entry);
      grads_.push_back(plan.size() == 6 ? nullptr : t.g.data());
      rows_.push_back(std::int32_t(plan.size() % 2));
      want_.push_back(t.elements());
    }
    coefs_ = coefficients<Rule>(false);
    const std::vector<double> second = coefficients<Rule>(true);
    coefs_.insert(coefs_.end(), second.begin(), second.end());
    plan_ = std::make_unique<StepPlan>(index_of<Rule>(Rules{}), std::move(plan));
  }

  void step() { plan_->step(grads_.data(), coefs_.data(), Index(coefs_.size() / 2), rows_.data()); }

  void check_norms() {
    double sum = 0, squares = 0, largest = 0;
    std::vector<double> each(tensors_.size());
    plan_->norms(grads_.data(), each.data());
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
      const double before = squares;
      for (Index i = 0; grads_[t] && i < tensors_[t].g.size(); ++i) {
        const double g = std::abs(double(load(tensors_[t].g[i])));
        sum += g, squares += g * g, largest = std::fmax(largest, g);
      }
      check_near<double>("norms", Index(t), each[t], std::sqrt(squares - before), 1000);
    }
    check_near<double>("norm 1", 0, plan_->norm(grads_.data(), 1.0), sum, 1000);
    check_near<double>("norm 2", 0, plan_->norm(grads_.data(), 2.0), std::sqrt(squares), 1000);
    check_near<double>("norm inf", 0, plan_->norm(grads_.data(), kInfinity), largest, 0);
  }

  void check_after(int steps) {
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
      const std::vector<double> coefs = coefficients<Rule>(rows_[t] == 1);
      for (Index i = 0; grads_[t] && i < tensors_[t].p.size(); ++i)
        for (int s = 0; s < steps; ++s)
          plain_step<Rule>(coefs, double(load(tensors_[t].g[i])), want_[t][std::size_t(i)]);
      tensors_[t].check(std::string("plan ") + Rule<double>::name, want_[t], true, 64 * steps);
    }
  }

 private:
  std::vector<Tensor<S>> tensors_;
  std::vector<const void*> grads_;
  std::vector<std::int32_t> rows_;
  std::vector<std::vector<Element>> want_;
  std::vector<double> coefs_;
  std::unique_ptr<StepPlan> plan_;
};

template <template <class> class Rule, class S>
void check_plans() {
  constexpr int kThreads = 4, kSteps = 3;
  in_threads(kThreads, [](int t) {
    Planned<Rule, S> own(std::uint64_t(t) + 1);
    own.check_norms();
    for (int s = 0; s < kSteps; ++s) own.step();
    own.check_after(kSteps);
  });
  // The steps of one plan take turns; all are the same, so their order is no matter.
  Planned<Rule, S> shared(9);
  in_threads(kThreads, [&](int) {
    for (int s = 0; s < kSteps; ++s) shared.step(), shared.check_norms();
  });
  shared.check_after(kThreads * kSteps);
}

}  // namespace

void test_step() {
  on_each_isa([] { check_kernels(Rules{}); });
  const ChangingThreads changing;
  on_each_isa([] {
    check_plans<Sgd, float>();
    check_plans<Adam, float>();
    check_plans<Nadam, double>();
  });
}

}  // namespace fastopt::test
