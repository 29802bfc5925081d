// Small models with their data, parameters and plans, for the CPU's program and for the device's: all made
// from the same float32 numbers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/program.hpp"
#include "cuda/program.hpp"
#include "native.hpp"
#include "plain.hpp"

namespace fastopt::test {

struct LayerSpec {
  LayerKind kind = LayerKind::linear;
  Index out = 0;
  int activation = -1;
  bool bias = true, dropout = false, frozen = false;
  Index same_as = -1;  // the layer that has the same parameters
  bool tracks = true;  // of a batch normalisation
};

struct ModelSpec {
  std::string name;
  Index in = 5;
  std::vector<LayerSpec> layers;
  ProgramLoss loss = {};
  bool classes = false;        // are the target
  bool class_weights = false;  // of the loss
  bool factors = false;        // of each element, and parameters of the loss
  bool gathered = false;       // the loss's weights go with the samples
  bool stored = false;         // gradients are wanted
  bool two_plans = false;      // of different rules, with two sets of coefficients each
  bool descent = false;        // the first plan is of plain gradient descent
  bool bounded = false;        // with an L1 penalty and clipping by value
  double max_norm = kInfinity, rate = 0.3;
};

inline constexpr Index kSamples = 43;

struct ActivationInfo {
  bool needs_x, needs_y;
};
template <template <class> class... F>
ActivationInfo activation_info(Formulas<F...>, int formula) {
  constexpr ActivationInfo kInfos[] = {{F<double>::grad_needs_x, F<double>::grad_needs_y}...};
  return kInfos[formula];
}

template <class T>
struct ModelArrays {
  Guarded<T> p, grad;
  std::vector<Guarded<T>> states;
};

template <class T>
class Model {
 public:
  const std::vector<ModelArrays<T>>& arrays() const { return arrays_; }
  const std::vector<double>& losses() const { return losses_; }
  double norm() const { return norm_; }
  Guarded<T>& x() { return x_; }
  Guarded<Index>& classes() { return classes_; }

 protected:
  struct PlanSpec {
    int rule, states;
    Index sets;
    std::vector<double> row;
    std::vector<PlanTensor> tensors;
  };

  explicit Model(const ModelSpec& spec) : spec_(spec), order_(kSamples) {
    Random random(17);
    x_ = numbers(random, kSamples * spec.in, -1, 1);
    const Index out = spec.layers.back().out;
    const bool probabilities = spec.loss.probabilities || spec.loss.kind != LossKind::elementwise ||
                               spec.loss.formula >= index_of<Bce>(Losses{});
    target_ = numbers(random, kSamples * out, probabilities ? 0.05 : -1, 0.95);
    classes_ = Guarded<Index>(kSamples);
    for (Index i = 0; i < kSamples; ++i)
      classes_[i] = i % 7 == 2 ? spec.loss.ignore_index : random.below(out);
    for (Index i = 0; i < kSamples; ++i) order_[i] = (7 * i + 3) % kSamples;
    weight_ = numbers(random, kSamples * out, 0.5, 1.5);
    param_ = numbers(random, kSamples * out, 0.5, 1.5);
    class_weight_ = numbers(random, out, 0.5, 1.5);
    place_plans();
    place_layers(random);
  }

  // So many steps from sample `begin` on.
  ProgramRun start(Index begin, Index batch, Index steps, bool ordered) {
    ProgramRun run{};
    run.x = x_.data();
    run.classes = spec_.classes;
    run.target = spec_.classes ? static_cast<const void*>(classes_.data()) : target_.data();
    run.repeat = 1;
    run.order = ordered ? order_.data() : nullptr;
    run.begin = begin, run.end = kSamples, run.batch = batch, run.steps = steps;
    if (spec_.factors) run.weight = weight_.data(), run.param = param_.data();
    if (spec_.gathered) run.weight = weight_.data(), run.gather_weight = true;
    rates_.clear();
    for (const ProgramLayer& layer : layers_)
      if (layer.dropout) rates_.push_back(rates_.size() % 3 == 1 ? 0.0 : spec_.rate);
    dropouts_ = rates_.size();
    for (const ProgramLayer& layer : layers_)
      if (layer.kind == LayerKind::batch_norm) rates_.push_back(1.0);
    run.rates = rates_.data();
    run.seed = 3, run.offset = offset_;
    coefs_.clear();
    for (Index s = 0; s < steps; ++s)
      for (const PlanSpec& plan : plan_specs_)
        for (Index set = 0; set < plan.sets; ++set) {
          coefs_.insert(coefs_.end(), plan.row.begin(), plan.row.end());
          double& rate = coefs_[coefs_.size() - plan.row.size() + 4];
          rate /= double(1 + set) * (1 + 0.1 * double(s));
        }
    run.coefs = coefs_.data();
    run.max_norm = spec_.max_norm;
    losses_.assign(std::size_t(steps), -1.0);
    run.losses = losses_.data();
    return run;
  }

  void finish(const ProgramRun& run) {
    norm_ = run.norm;
    for (std::size_t d = 0; d < dropouts_; ++d) offset_ += std::uint64_t(rates_[d] > 0 ? run.steps : 0);
  }

  ProgramLoss loss() const {
    ProgramLoss loss = spec_.loss;
    if (spec_.class_weights) loss.class_weight = class_weight_.data();
    return loss;
  }
  static std::vector<std::int32_t> sets_of(const PlanSpec& plan) {
    std::vector<std::int32_t> sets;
    if (plan.sets > 1)
      for (std::size_t t = 0; t < plan.tensors.size(); ++t) sets.push_back(std::int32_t(t % 2));
    return sets;
  }

  ModelSpec spec_;
  std::vector<PlanSpec> plan_specs_;
  std::vector<ProgramLayer> layers_;

 private:
  static Guarded<T> numbers(Random& random, Index n, double low, double high) {
    Guarded<T> x(n);
    for (Index i = 0; i < n; ++i) x[i] = T(float(random.uniform(low, high)));
    return x;
  }

  void place_plans() {
    const Index sets = spec_.two_plans ? 2 : 1;
    if (spec_.descent)
      plan_specs_.push_back({index_of<Sgd>(Rules{}), 0, sets, coefficients<Sgd>(spec_.bounded), {}});
    else
      plan_specs_.push_back({index_of<Adam>(Rules{}), 2, sets, coefficients<Adam>(false), {}});
    if (spec_.two_plans)
      plan_specs_.push_back({index_of<Momentum>(Rules{}), 1, sets, coefficients<Momentum>(true), {}});
  }

  void place_layers(Random& random) {
    arrays_.reserve(4 * spec_.layers.size());
    batches_.reserve(spec_.layers.size());
    Index in = spec_.in;
    for (const LayerSpec& spec : spec_.layers) {
      ProgramLayer layer;
      layer.kind = spec.kind, layer.in = in, layer.out = spec.out;
      if (spec.activation >= 0) {
        const ActivationInfo info = activation_info(Activations{}, spec.activation);
        layer.activation = spec.activation, layer.needs_x = info.needs_x, layer.needs_y = info.needs_y;
        std::fill(std::begin(layer.params), std::end(layer.params), 0.4);
      }
      layer.dropout = spec.dropout;
      if (spec.same_as >= 0) {
        const ProgramLayer& other = layers_[std::size_t(spec.same_as)];
        layer.weight = other.weight, layer.bias = other.bias;
        ++layer.weight.use, ++layer.bias.use;
      } else if (spec.kind == LayerKind::linear) {
        layer.weight = parameter(random, in * spec.out, spec.frozen);
        if (spec.bias) layer.bias = parameter(random, spec.out, false);
      } else if (spec.kind == LayerKind::batch_norm) {
        if (spec.bias) {
          layer.weight = parameter(random, spec.out, spec.frozen);
          layer.bias = parameter(random, spec.out, false);
        }
        layer.norm.eps = 0.1, layer.norm.momentum = spec.frozen ? -1.0 : 0.3;
        if (spec.tracks) {
          layer.norm.running_mean = numbers_of(spec.out, T(0.25));
          layer.norm.running_var = numbers_of(spec.out, T(1.5));
          layer.norm.batches = &batches_.emplace_back(2);
        }
      }
      layers_.push_back(layer);
      in = spec.out;
    }
  }

  // Running statistics, compared as parameters are.
  void* numbers_of(Index n, T value) {
    ModelArrays<T>& arrays = arrays_.emplace_back();
    arrays.p = Guarded<T>(n, value);
    arrays.grad = Guarded<T>(n);
    return arrays.p.data();
  }

  ProgramParameter parameter(Random& random, Index n, bool frozen) {
    ModelArrays<T>& arrays = arrays_.emplace_back();
    arrays.p = numbers(random, n, -0.5, 0.5);
    arrays.grad = Guarded<T>(n);
    for (int s = 0; s < 2; ++s) arrays.states.emplace_back(n);
    ProgramParameter p;
    p.data = arrays.p.data();
    if (frozen) return p;
    if (spec_.stored) p.grad = arrays.grad.data();
    p.plan = Index(arrays_.size()) % Index(plan_specs_.size());
    PlanSpec& plan = plan_specs_[std::size_t(p.plan)];
    p.tensor = Index(plan.tensors.size());
    PlanTensor tensor{p.data, {}, nullptr, n, kDType<T>};
    for (int s = 0; s < plan.states; ++s) tensor.states[s] = arrays.states[std::size_t(s)].data();
    plan.tensors.push_back(tensor);
    return p;
  }

  Guarded<T> x_, target_, weight_, param_, class_weight_;
  Guarded<Index> classes_, order_;
  std::vector<ModelArrays<T>> arrays_;
  std::vector<double> rates_, coefs_, losses_;
  std::vector<Index> batches_;
  std::size_t dropouts_ = 0;
  std::uint64_t offset_ = 4;
  double norm_ = 0.0;
};

template <class T>
class CpuModel : public Model<T> {
 public:
  explicit CpuModel(const ModelSpec& spec) : Model<T>(spec) {
    std::vector<ProgramPlan> plans;
    Index first = 0;
    for (const auto& plan : this->plan_specs_) {
      const Index width = Index(plan.row.size());
      plans_.push_back(std::make_unique<StepPlan>(plan.rule, plan.tensors));
      plans.push_back({plans_.back().get(), first, plan.sets, width, this->sets_of(plan)});
      first += plan.sets * width;
    }
    program_ = std::make_unique<Program>(kDType<T>, false, this->layers_, this->loss(), plans);
  }
  ProgramStop run(Index begin, Index batch, Index steps, bool ordered) {
    ProgramRun run = this->start(begin, batch, steps, ordered);
    const ProgramStop stop = program_->run(run);
    this->finish(run);
    return stop;
  }
  Program& program() { return *program_; }

 private:
  std::vector<std::unique_ptr<StepPlan>> plans_;
  std::unique_ptr<Program> program_;
};

template <class T>
class DeviceModel : public Model<T> {
 public:
  DeviceModel(const ModelSpec& spec, bool graphs) : Model<T>(spec) {
    std::vector<DeviceProgramPlan> plans;
    Index first = 0;
    for (const auto& plan : this->plan_specs_) {
      const Index width = Index(plan.row.size());
      plans_.push_back(std::make_unique<DevicePlan>(plan.rule, plan.tensors));
      plans.push_back(
          {plans_.back().get(), Index(plan.tensors.size()), first, plan.sets, width, this->sets_of(plan)});
      first += plan.sets * width;
    }
    program_ =
        std::make_unique<DeviceProgram>(kDType<T>, Precision::ieee, this->layers_, this->loss(), plans);
    program_->use_graphs(graphs);
  }
  ProgramStop run(Index begin, Index batch, Index steps, bool ordered, CudaStream stream) {
    ProgramRun run = this->start(begin, batch, steps, ordered);
    const ProgramStop stop = program_->run(run, stream);
    this->finish(run);
    return stop;
  }
  DeviceProgram& program() { return *program_; }

 private:
  std::vector<std::unique_ptr<DevicePlan>> plans_;
  std::unique_ptr<DeviceProgram> program_;
};

}  // namespace fastopt::test
