// The device's program against the CPU's: the same steps with kernels launched one by one and with graphs,
// which give the same bits, near those of the CPU.
#include "cuda/program.hpp"

#include "bits.hpp"
#include "cublaslt.hpp"
#include "host_graph.hpp"
#include "models.hpp"
#include "parts.hpp"

namespace fastopt::test {
namespace {

// Counts a failure unless got is as near to the numbers in double as the CPU is, or twice as far.
template <class T, class Got, class Want>
void check_close(const std::string& what, Index n, const Got& got, const Got& of_cpu, const Want& want) {
  double error = 0.0, cpu_error = 0.0, scale = 1e-3;
  for (Index i = 0; i < n; ++i) {
    const double wanted = double(want[i]);
    error = std::fmax(error, std::isnan(double(got[i])) ? kInfinity : std::abs(double(got[i]) - wanted));
    cpu_error = std::fmax(cpu_error, std::abs(double(of_cpu[i]) - wanted));
    scale = std::fmax(scale, std::abs(wanted));
  }
  if (error <= 2 * cpu_error + 32 * kEps<T> * scale) return;
  if (failures++ < 50)
    fprintf(stderr, "%s is off by %.3g, on the CPU by %.3g\n", what.c_str(), error, cpu_error);
}

// A model on the CPU, there in double too, and on the device with and without graphs.
template <class T>
class Models {
 public:
  explicit Models(const ModelSpec& spec)
      : spec_(spec), reference_(spec), cpu_(spec), direct_(spec, false), graphs_(spec, true) {}

  void run(Index begin, Index batch, Index steps, bool ordered) {
    // Either a stream of one's own or the legacy one, which no graph can be captured from.
    CudaStream const stream = ordered ? stream_.get() : nullptr;
    CHECK(reference_.run(begin, batch, steps, ordered).reason == ProgramStop::none);
    CHECK(cpu_.run(begin, batch, steps, ordered).reason == ProgramStop::none);
    const unsigned long before = host_cuda::replayed();
    CHECK(direct_.run(begin, batch, steps, ordered, stream).reason == ProgramStop::none);
    CHECK(host_cuda::replayed() == before);
    CHECK(graphs_.run(begin, batch, steps, ordered, stream).reason == ProgramStop::none);
    CHECK(steps <= 2 || host_cuda::replayed() > before);
    CHECK(graphs_.program().steps() == cpu_.program().steps());
    check();
  }

  void predict() {
    const Index out = cpu_.program().out();
    Guarded<double> want(kSamples * out);
    Guarded<T> of_cpu(kSamples * out), got(kSamples * out);
    reference_.program().predict(reference_.x().data(), kSamples, 16, want.data());
    cpu_.program().predict(cpu_.x().data(), kSamples, 16, of_cpu.data());
    graphs_.program().predict(graphs_.x().data(), kSamples, 16, got.data(), stream_.get());
    check_close<T>(spec_.name + ": output", want.size(), got, of_cpu, want);
  }

 private:
  void check() const {
    const auto near = [&](const char* what, Index n, const auto& got, const auto& of_cpu, const auto& want) {
      check_close<T>(spec_.name + ": " + what, n, got, of_cpu, want);
    };
    near("loss", Index(cpu_.losses().size()), graphs_.losses(), cpu_.losses(), reference_.losses());
    near("norm", 1, std::vector{graphs_.norm()}, std::vector{cpu_.norm()}, std::vector{reference_.norm()});
    CHECK(graphs_.losses() == direct_.losses() && graphs_.norm() == direct_.norm());
    for (std::size_t i = 0; i < cpu_.arrays().size(); ++i) {
      const ModelArrays<T>&got = graphs_.arrays()[i], &direct = direct_.arrays()[i],
            &of_cpu = cpu_.arrays()[i];
      const ModelArrays<double>& want = reference_.arrays()[i];
      near("parameter", want.p.size(), got.p, of_cpu.p, want.p);
      check_same(spec_.name + ": parameter", direct.p, got.p);
      for (std::size_t s = 0; s < want.states.size(); ++s) {
        near("state", want.p.size(), got.states[s], of_cpu.states[s], want.states[s]);
        check_same(spec_.name + ": state", direct.states[s], got.states[s]);
      }
      if (spec_.stored) near("gradient", want.p.size(), got.grad, of_cpu.grad, want.grad);
    }
  }

  ModelSpec spec_;
  OwnStream stream_;
  CpuModel<double> reference_;
  CpuModel<T> cpu_;
  DeviceModel<T> direct_, graphs_;
};

// Steps one by one, an epoch with a smaller last batch, and again, when there are graphs of its batches; with
// and without an order.
template <class T>
void check_steps(const ModelSpec& spec) {
  Models<T> models(spec);
  models.run(0, 8, 1, true);
  models.run(8, 8, 1, false);
  models.run(0, 8, 6, true);
  models.run(0, 8, 6, true);
  models.run(1, 9, 5, false);
  models.run(0, 8, 1, true);
  models.predict();
}

void check_model(const ModelSpec& spec) {
  check_steps<float>(spec);
  check_steps<double>(spec);
}

LayerSpec linear(Index out, int activation = -1, bool dropout = false) {
  LayerSpec layer;
  layer.out = out, layer.activation = activation, layer.dropout = dropout;
  return layer;
}
LayerSpec pointwise(Index columns, int activation, bool dropout = false) {
  LayerSpec layer = linear(columns, activation, dropout);
  layer.kind = LayerKind::pointwise;
  return layer;
}
LayerSpec softmax(Index columns, LayerKind kind) {
  LayerSpec layer = linear(columns);
  layer.kind = kind;
  return layer;
}

LayerSpec batch_norm(Index columns, bool weights = true, bool tracks = true) {
  LayerSpec layer = linear(columns);
  layer.kind = LayerKind::batch_norm;
  layer.bias = weights, layer.tracks = tracks;
  return layer;
}

const int kRelu = index_of<Relu>(Activations{}), kSigmoid = index_of<Sigmoid>(Activations{}),
          kTanh = index_of<Tanh>(Activations{}), kSilu = index_of<Silu>(Activations{});

ProgramLoss element_loss(int formula, Reduction reduction, double param = 0.0) {
  ProgramLoss loss;
  loss.formula = formula, loss.reduction = reduction;
  loss.params[0] = param;
  return loss;
}
ProgramLoss class_loss(LossKind kind, Reduction reduction, double smoothing = 0.0) {
  ProgramLoss loss;
  loss.kind = kind, loss.reduction = reduction, loss.label_smoothing = smoothing;
  loss.ignore_index = -100;
  return loss;
}

// Each activation with and without dropout and bias, as part of a linear layer, by itself, and at the end.
void check_activations() {
  for (int f = 0; f < Activations::size; ++f)
    for (const bool dropout : {false, true}) {
      ModelSpec spec{"activation " + std::to_string(f), 5, {linear(9, f, dropout), linear(6, f, dropout)}};
      spec.layers[1].bias = dropout;
      spec.layers.push_back(pointwise(6, f));
      spec.layers.push_back(linear(4, f));
      check_model(spec);
    }
}

void check_layers() {
  ModelSpec spec{"pointwise layers", 6, {pointwise(6, -1, true), linear(5), pointwise(5, kSilu)}};
  spec.layers.push_back(pointwise(5, -1, true));
  spec.layers.push_back(pointwise(5, -1));
  spec.layers.push_back(linear(3));
  check_model(spec);
  spec = {"softmax layers", 6, {linear(5, kTanh, true), softmax(5, LayerKind::softmax), linear(4)}};
  spec.layers.push_back(softmax(4, LayerKind::log_softmax));
  check_model(spec);
  spec = {"frozen weights", 6, {linear(5, kRelu), linear(7, kTanh), linear(3)}};
  spec.layers[0].frozen = spec.layers[1].frozen = true;
  spec.layers[0].bias = false;
  check_model(spec);
  // Between them activations: a bias that the next one subtracts has rounding errors for a gradient.
  spec = {"batch norms", 6, {batch_norm(6), linear(6, kTanh, true), batch_norm(6), linear(5, kSilu)}};
  for (const LayerSpec& layer : {batch_norm(5, false), pointwise(5, kSilu), linear(4, kTanh)})
    spec.layers.push_back(layer);
  spec.layers.push_back(batch_norm(4, true, false));
  spec.layers.push_back(linear(3));
  spec.layers[2].frozen = true;
  check_model(spec);
  spec.descent = true;
  check_model(spec);
  spec = {"one layer", 7, {linear(3)}};
  spec.stored = true;
  check_model(spec);
}

void check_updates() {
  ModelSpec spec{"shared", 6, {linear(6, kTanh), linear(6, kTanh, true), linear(6), linear(3)}};
  spec.layers[1].same_as = spec.layers[2].same_as = 0;
  spec.stored = true;
  check_model(spec);
  spec.name = "shared, clipped";
  spec.max_norm = 0.05;
  check_model(spec);
  spec = {"two plans", 6, {linear(9, kRelu, true), linear(4, kSigmoid), linear(3)}};
  spec.two_plans = true;
  check_model(spec);
  spec.name = "two plans, clipped";
  spec.max_norm = 0.05, spec.stored = true;
  check_model(spec);
}

void check_losses() {
  const std::vector<LayerSpec> layers = {linear(8, kRelu), linear(4)};
  constexpr Reduction kReductions[] = {Reduction::sum, Reduction::mean, Reduction::batchmean};
  for (int f = 0; f < Losses::size; ++f) {
    ModelSpec spec{"loss " + std::to_string(f), 5, layers, element_loss(f, kReductions[f % 3], 0.5)};
    spec.loss.probabilities = f == index_of<Bce>(Losses{});
    if (spec.loss.probabilities) spec.layers[1].activation = kSigmoid;
    if (f > index_of<BceWithLogits>(Losses{})) spec.layers.push_back(softmax(4, LayerKind::log_softmax));
    spec.factors = f % 2 != 0;
    spec.gathered = !spec.factors;
    check_model(spec);
  }
  for (const Reduction reduction : kReductions) {
    for (const bool classes : {true, false}) {
      ModelSpec spec{"cross entropy", 5, layers, class_loss(LossKind::cross_entropy, reduction, 0.1)};
      spec.classes = spec.class_weights = classes;
      check_model(spec);
    }
    ModelSpec spec{"nll", 5, layers, class_loss(LossKind::nll, reduction)};
    spec.layers.push_back(softmax(4, LayerKind::log_softmax));
    spec.classes = true;
    check_model(spec);
  }
}

// More steps than a graph of many has, and an order that grows.
void check_long_runs() {
  const ModelSpec spec{"long run", 3, {linear(4, kRelu, true), linear(2)}};
  Models<float> models(spec);
  models.run(0, 1, 20, true);
  for (const bool ordered : {false, true, false, true}) models.run(0, 1, kSamples, ordered);
}

template <class T>
Guarded<T> parameter(const Model<T>& model, std::size_t i) {
  return copy(model.arrays()[i].p);
}

// A class out of range anywhere in the run: nothing has changed.
void check_bad_classes() {
  ModelSpec spec{
      "bad class", 5, {linear(6, kRelu), linear(4)}, class_loss(LossKind::cross_entropy, Reduction::mean)};
  spec.classes = true;
  for (const Index bad : {Index(-1), Index(4)}) {
    spec.descent = bad == 4;
    DeviceModel<float> model(spec, true);
    CHECK(model.run(0, 8, 2, false, nullptr).reason == ProgramStop::none);
    const Guarded<float> before = parameter(model, 0);
    const Index good = model.classes()[30];
    model.classes()[30] = bad;
    const ProgramStop found = model.program().check_classes(model.classes().data(), kSamples, nullptr);
    CHECK(found.reason == ProgramStop::bad_class && found.at == 30 && found.value == double(bad));
    CHECK(model.program().check_classes(model.classes().data(), 30, nullptr).reason == ProgramStop::none);
    for (const bool ordered : {false, true}) {
      const ProgramStop stop = model.run(0, 8, 6, ordered, nullptr);
      CHECK(stop.reason == ProgramStop::bad_class && stop.at == 30 && stop.value == double(bad));
      CHECK(model.program().steps() == 2);
      check_same("bad class", parameter(model, 0), before);
    }
    CHECK(model.run(0, 8, 3, false, nullptr).reason == ProgramStop::none);  // it does not come up
    model.classes()[30] = good;
    CHECK(model.run(0, 8, 6, false, nullptr).reason == ProgramStop::none);
  }
}

// An output that is no probability ends the run where it comes up, as on the CPU.
void check_no_probability() {
  const int bce = index_of<Bce>(Losses{});
  ModelSpec spec{"no probability", 5, {linear(3)}, element_loss(bce, Reduction::mean)};
  spec.layers[0].bias = false;
  spec.loss.probabilities = true;
  CpuModel<float> want(spec);
  DeviceModel<float> direct(spec, false), graphs(spec, true);
  const auto prepare = [](Model<float>& model) {
    // Outputs are the first input, which leaves [0, 1] in the third batch.
    for (Index i = 0; i < 15; ++i) model.arrays()[0].p[i] = i % 5 == 0 ? 1.0f : 0.0f;
    for (Index i = 0; i < kSamples; ++i)
      for (Index j = 0; j < 5; ++j) model.x()[i * 5 + j] = j > 0 ? 0.0f : i == 19 ? 1.75f : 0.5f;
  };
  prepare(want), prepare(direct), prepare(graphs);
  const ProgramStop stop = want.run(0, 8, 5, false);
  CHECK(stop.reason == ProgramStop::no_probability && want.program().steps() == 2);
  for (DeviceModel<float>* const model : {&direct, &graphs}) {
    const ProgramStop got = model->run(0, 8, 5, false, nullptr);
    CHECK(got.reason == stop.reason && got.at == stop.at);
    CHECK(std::abs(got.value - stop.value) <= 1e-6);
    CHECK(model->program().steps() == 2);
    for (Index i = 0; i < 15; ++i)
      check_near<float>("no probability", i, double(model->arrays()[0].p[i]), double(want.arrays()[0].p[i]),
                        16);
    for (const Index step : {0, 1}) CHECK(model->losses()[std::size_t(step)] > 0);
    CHECK(model->losses()[2] == -1.0);
  }
}

// Products that update weights by plain gradient descent, of runs of so many steps: how many there are in
// one. None where the program is told so; then and otherwise the numbers are those of the CPU.
void check_fused(ModelSpec spec, int each, Index steps = 6) {
  spec.descent = true;
  ModelSpec stored = spec;  // where the CPU asks for it
  stored.stored =
      spec.stored || !std::isinf(spec.max_norm) || spec.layers[1 % spec.layers.size()].same_as >= 0;
  check_model(stored);
  for (const bool on : {true, false}) {
    DeviceModel<float> model(spec, false);
    model.program().fuse_updates(on);
    host_cuda::cublaslt.scaled_on_device = 0;
    CHECK(model.run(0, 8, steps, true, nullptr).reason == ProgramStop::none);
    CHECK(steps == 1 || host_cuda::cublaslt.scaled_on_device >= (on ? each * int(steps) : 0));
    CHECK((host_cuda::cublaslt.scaled_on_device > 0) == (on && each > 0));
  }
}

void check_descent() {
  const std::vector<LayerSpec> layers = {linear(9, kRelu, true), linear(6, kTanh), pointwise(6, -1, true),
                                         linear(4)};
  ModelSpec spec{"descent", 5, layers};
  check_fused(spec, 3);
  check_fused(spec, 3, 1);
  spec.layers[1].bias = spec.layers[3].bias = false;
  check_fused(spec, 3);
  spec.two_plans = true;
  spec.name = "descent, two plans and sets";
  check_fused(spec, 1);
  spec = {"descent, clipped", 5, layers};
  spec.max_norm = 0.05;
  check_fused(spec, 0);
  spec = {"descent, bounded", 5, layers};
  spec.bounded = true;
  check_fused(spec, 0);
  spec = {"descent, gradients wanted", 5, layers};
  spec.stored = true;
  check_fused(spec, 0);
  spec = {"descent, shared and frozen", 6, {linear(6, kTanh), linear(6), linear(6), linear(3)}};
  spec.layers[1].same_as = 0;
  spec.layers[2].frozen = true;
  check_fused(spec, 1);
  spec = {"descent, only a weight", 7, {linear(3)}};
  spec.layers[0].bias = false;
  check_fused(spec, 1);
  const ProgramLoss loss = class_loss(LossKind::cross_entropy, Reduction::mean, 0.1);
  spec = {"descent, classes", 5, {linear(8, kRelu), linear(4)}, loss};
  check_fused(spec, 2);
  spec.classes = true;
  check_fused(spec, 2);
  check_fused(spec, 0, 1);  // a single step does not wait to know its classes
  spec = {"descent, probabilities", 5, {linear(8, kRelu), linear(4, kSigmoid)}};
  spec.loss = element_loss(index_of<Bce>(Losses{}), Reduction::mean);
  spec.loss.probabilities = true;
  check_fused(spec, 0);
}

}  // namespace

void test_cuda_program() {
  check_descent();
  check_activations();
  check_layers();
  check_updates();
  check_losses();
  check_long_runs();
  check_bad_classes();
  check_no_probability();
}

}  // namespace fastopt::test
