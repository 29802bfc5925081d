// The CUDA step driver, every rule, storage type and option, against the CPU's plan: the same bits.
#include <algorithm>

#include "bits.hpp"
#include "cuda/attempts.hpp"
#include "cuda/queue.hpp"
#include "formulas/common.hpp"
#include "host_graph.hpp"
#include "parts.hpp"
#include "plain.hpp"

namespace fastopt::test {
namespace {

// Which array of a tensor is not aligned for packs.
enum class Odd { none, p, g, state, ema };
constexpr Odd kOdds[] = {Odd::none, Odd::p, Odd::g, Odd::state, Odd::ema};

// A parameter with its gradient, state and average, and what lies behind them.
template <class S>
struct Arrays {
  using T = Compute<S>;
  Index n;
  Guarded<S> p, g;
  std::vector<Guarded<T>> states;
  Guarded<T> ema;

  Arrays(Random& random, Index n_, int states_size, Odd odd)
      : n(n_),
        p(any_numbers<S>(random, padded(n, odd != Odd::p))),
        g(any_numbers<S>(random, padded(n, odd != Odd::g))),
        ema(any_numbers<T>(random, padded(n, odd != Odd::ema))) {
    for (int s = 0; s < states_size; ++s)
      states.push_back(random.uniforms<T>(padded(n, odd != Odd::state), 0, 0.5));
  }
  Arrays(const Arrays& other) : n(other.n), p(copy(other.p)), g(copy(other.g)), ema(copy(other.ema)) {
    for (const Guarded<T>& state : other.states) states.push_back(copy(state));
  }
  Arrays(Arrays&&) = default;

  PlanTensor tensor(bool with_ema) const {
    PlanTensor entry{p.data(), {}, with_ema ? ema.data() : nullptr, n, kDType<S>};
    for (std::size_t s = 0; s < states.size(); ++s) entry.states[s] = states[s].data();
    return entry;
  }
  void check(const std::string& what, const Arrays& want) const {
    check_same(what + " p", p, want.p);
    check_same(what + " g", g, want.g);
    for (std::size_t s = 0; s < states.size(); ++s) check_same(what + " state", states[s], want.states[s]);
    check_same(what + " ema", ema, want.ema);
  }
};

// The tensors of one side and their gradients; every fifth has none.
struct Side {
  std::vector<PlanTensor> tensors;
  std::vector<const void*> grads;

  template <class S>
  void add(const Arrays<S>& arrays, bool with_ema) {
    tensors.push_back(arrays.tensor(with_ema));
    grads.push_back(tensors.size() % 5 == 2 ? nullptr : arrays.g.data());
  }
};

// Tensors of one storage type twice: for the CUDA kernels, and for the CPU's.
template <class S>
class Twins {
 public:
  // Each size in turn, the misaligned array and the average changing from one to the next.
  Twins(Random& random, const std::vector<Index>& sizes, int states_size, Side* cuda, Side* cpu) {
    for (std::size_t t = 0; t < sizes.size(); ++t) {
      const bool with_ema = t / 2 % 2 != 0;
      got_.emplace_back(random, sizes[t], states_size, kOdds[t % std::size(kOdds)]);
      want_.emplace_back(got_.back());
      cuda->add(got_.back(), with_ema);
      cpu->add(want_.back(), with_ema);
    }
  }

  void check(const std::string& what) const {
    for (std::size_t t = 0; t < got_.size(); ++t)
      got_[t].check(what + " tensor " + std::to_string(t) + " of " + std::to_string(got_[t].n), want_[t]);
  }

 private:
  std::vector<Arrays<S>> got_, want_;
};

// Coefficients of a rule under four kinds of step: plain, clipped by value, with L1, with both.
template <template <class> class Rule>
std::vector<double> rows_of() {
  std::vector<double> all;
  for (const bool clip : {false, true})
    for (const bool l1 : {false, true}) {
      std::vector<double> row = coefficients<Rule>(true);
      if (!clip) row[kClipValue] = kInfinity;
      if (!l1) row[kL1] = 0.0;
      all.insert(all.end(), row.begin(), row.end());
    }
  return all;
}

// Steps of one plan on both sides, with another row of coefficients for each tensor.
class Planned {
 public:
  Planned(int rule, const Side& cuda, const Side& cpu, std::vector<double> coefs)
      : coefs_(std::move(coefs)),
        width_(Index(coefs_.size()) / 4),
        cuda_grads_(cuda.grads),
        cpu_grads_(cpu.grads),
        cuda_(rule, cuda.tensors),
        cpu_(rule, cpu.tensors) {
    for (std::size_t t = 0; t < cuda.tensors.size(); ++t) rows_.push_back(std::int32_t(t % 4));
  }

  // The scale of the device joins that of the coefficients in double, where the CPU is given the product.
  void step(bool with_rows, const double* scale, bool from_host = false) {
    DeviceStep step{cuda_grads_.data(), coefs_.data(), width_};
    const std::int32_t found_inf = 0;
    if (with_rows) step.rows = rows_.data();
    if (scale) step.grad_scale = scale, step.found_inf = &found_inf;
    if (from_host) {
      step_from_host(step);
    } else {
      cuda_.step(step, nullptr);
    }
    std::vector<double> coefs = coefs_;
    for (std::size_t i = 0; scale && i < coefs.size(); i += std::size_t(width_)) coefs[i] *= *scale;
    cpu_.step(cpu_grads_.data(), coefs.data(), width_, with_rows ? rows_.data() : nullptr);
  }

  // The first pass of a step in two, and the second with factors that belong to tensors.
  void step_in_two(const double* scale) {
    const Index n = Index(cpu_grads_.size());
    const Guarded<double> got(2 * n, -1.0), want(2 * n, -2.0), factors(Factors::kSize * n);
    for (Index i = 0; i < factors.size(); ++i) factors[i] = 1.0 / double(1 + i % 7);
    std::vector<double> coefs = coefs_;
    for (std::size_t i = 0; scale && i < coefs.size(); i += std::size_t(width_)) coefs[i] *= *scale;
    DeviceStep step{cuda_grads_.data(), coefs_.data(), width_};
    step.rows = rows_.data();
    step.grad_scale = scale;
    cuda_.measure_from_host(step, Index(coefs_.size()), got.data(), nullptr);
    cpu_.measure(cpu_grads_.data(), coefs.data(), width_, rows_.data(), want.data());
    for (Index i = 0; i < 2 * n; ++i)
      CHECK(std::memcmp(&got[i], &want[i], sizeof(double)) == 0 || (is_nan(got[i]) && is_nan(want[i])));
    step.factors = factors.data();
    cuda_.step_from_host(step, Index(coefs_.size()), nullptr);
    cpu_.step(cpu_grads_.data(), coefs.data(), width_, rows_.data(), factors.data());
  }

  // A step that its flag calls off.
  void step_on_overflow() {
    const std::int32_t found_inf = 1;
    DeviceStep step{cuda_grads_.data(), coefs_.data(), width_};
    step.found_inf = &found_inf;
    cuda_.step(step, nullptr);
  }

 private:
  // With copies that are gone when the kernel might read them.
  void step_from_host(DeviceStep step) {
    std::vector<double> coefs = coefs_;
    std::vector<const void*> grads = cuda_grads_;
    std::vector<std::int32_t> rows = rows_;
    step.coefs = coefs.data(), step.grads = grads.data();
    if (step.rows) step.rows = rows.data();
    cuda_.step_from_host(step, Index(coefs.size()), nullptr);
  }

  std::vector<double> coefs_;
  Index width_;
  std::vector<std::int32_t> rows_;
  std::vector<const void*> cuda_grads_, cpu_grads_;
  DevicePlan cuda_;
  StepPlan cpu_;
};

void check_steps(Planned& plan, const std::string& what, const auto&... twins) {
  const double scale = 1.0 / 3;
  plan.step_on_overflow();
  (twins.check(what + " called off"), ...);
  plan.step(false, nullptr);
  (twins.check(what), ...);
  plan.step(true, &scale);
  (twins.check(what + " in rows"), ...);
  plan.step(false, nullptr, true);
  (twins.check(what + " from the host"), ...);
  plan.step(true, &scale, true);
  (twins.check(what + " in rows from the host"), ...);
  plan.step_in_two(nullptr);
  (twins.check(what + " in two passes"), ...);
  plan.step_in_two(&scale);
  (twins.check(what + " in two passes, scaled"), ...);
}

const std::vector<Index> kAllSizes(std::begin(kSizes), std::end(kSizes));
// Of tensors so large that chunks are larger than the smallest, and no multiple of them.
const std::vector<Index> kLargeSizes = {5, 40000, 100003, 2049};

template <template <class> class Rule, class S>
void check_storage(int rule, Random& random, const std::vector<Index>& sizes) {
  Side cuda, cpu;
  const Twins<S> twins(random, sizes, Rule<double>::states.size, &cuda, &cpu);
  Planned plan(rule, cuda, cpu, rows_of<Rule>());
  check_steps(plan, std::string(Rule<double>::name) + " " + std::to_string(int(kDType<S>)), twins);
}

// All storage types in one plan.
template <template <class> class Rule>
void check_mixed(int rule, Random& random) {
  constexpr int kStates = Rule<double>::states.size;
  const std::vector<Index> sizes = {17, 0, 2052, 255};
  Side cuda, cpu;
  const Twins<double> f64(random, sizes, kStates, &cuda, &cpu);
  const Twins<Bf16> bf16(random, sizes, kStates, &cuda, &cpu);
  const Twins<float> f32(random, sizes, kStates, &cuda, &cpu);
  const Twins<F16> f16(random, sizes, kStates, &cuda, &cpu);
  Planned plan(rule, cuda, cpu, rows_of<Rule>());
  check_steps(plan, std::string(Rule<double>::name) + " mixed", f64, bf16, f32, f16);
}

template <template <class> class Rule>
void check_rule(int rule, Random& random) {
  check_storage<Rule, float>(rule, random, kAllSizes);
  check_storage<Rule, double>(rule, random, kAllSizes);
  check_storage<Rule, Bf16>(rule, random, kAllSizes);
  check_storage<Rule, F16>(rule, random, kAllSizes);
  check_mixed<Rule>(rule, random);
}

template <template <class> class... Rule>
void check_rules(Formulas<Rule...>, Random& random) {
  int rule = 0;
  (check_rule<Rule>(rule++, random), ...);
}

// A row of coefficients for each of more tensors than rows travel with a launch, twice: the second time other
// ones, in another order.
void test_many_coefs(Random& random) {
  const int rule = index_of<Sgd>(Rules{});
  const Index tensors = 50, width = kCommonCoefs;
  Side cuda, cpu;
  const Twins<float> twins(random, std::vector<Index>(std::size_t(tensors), 33), 0, &cuda, &cpu);
  DevicePlan device(rule, cuda.tensors);
  StepPlan host(rule, cpu.tensors);
  for (const Index turn : {0, 1}) {
    std::vector<double> coefs;
    std::vector<std::int32_t> rows;
    for (Index t = 0; t < tensors; ++t) {
      coefs.insert(coefs.end(), {1.0, INFINITY, 0.0, 0.0, 0.01 * double(t + 1 + turn), 1.0, 0.0, 1.0});
      rows.push_back(std::int32_t(turn ? tensors - 1 - t : t));
    }
    DeviceStep step{cuda.grads.data(), coefs.data(), width};
    step.rows = rows.data();
    device.step_from_host(step, Index(coefs.size()), nullptr);
    host.step(cpu.grads.data(), coefs.data(), width, rows.data());
    twins.check("many coefficients");
  }
}

// Replays of one captured step, each with coefficients and rows of its own, beside steps that are not
// captured: of `count` tensors, of which one has no gradient.
void test_captured(Random& random, Index count) {
  const int rule = index_of<Adam>(Rules{});
  const Index width = kCommonCoefs + Index(Adam<double>::coefs.size);
  Side cuda, cpu;
  const Twins<float> twins(random, std::vector<Index>(std::size_t(count), 33), Adam<double>::states.size,
                           &cuda, &cpu);
  cuda.grads[1] = cpu.grads[1] = nullptr;
  DevicePlan device(rule, cuda.tensors);
  StepPlan host(rule, cpu.tensors);
  const OwnStream stream;
  CHECK(!device.is_prepared());
  device.prepare_capture(width, stream.get());
  CHECK(device.is_prepared());
  twins.check("prepared");
  double norm = 0.0, scale = 0.0;
  std::vector<const void*> grads = cuda.grads;
  const Graph graph(stream.get(), [&] {
    device.norm_from_host(Monoid::sum_squares, {grads.data(), kInfinity, &norm}, stream.get());
    DeviceStep step = {};
    step.grad_scale = &scale;
    device.capture_step(grads.data(), step, stream.get());
  });
  grads.assign(grads.size(), nullptr);  // the graph has its own
  twins.check("captured");
  std::vector<std::int32_t> rows;
  for (Index t = 0; t < count; ++t) rows.push_back(std::int32_t(t % 2));
  for (const Index turn : {0, 1, 2, 3}) {
    std::vector<double> coefs;
    for (const Index row : {0, 1}) {
      const std::vector<double> one = coefficients<Adam>(turn == 2);
      coefs.insert(coefs.end(), one.begin(), one.end());
      coefs[coefs.size() - one.size() + 4] *= double(1 + row + turn);
    }
    const std::int32_t* const row_of = turn == 1 ? nullptr : rows.data();
    std::vector<double> scaled = coefs;
    if (turn == 3) {  // as it was before there was a graph
      DeviceStep step{cuda.grads.data(), coefs.data(), width};
      step.rows = row_of;
      device.step_from_host(step, Index(coefs.size()), stream.get());
    } else {
      scale = 1.0 / double(turn + 3);
      device.advance_captured(coefs.data(), 2, row_of, stream.get());
      graph.launch(stream.get());
      const double want = host.norm(cpu.grads.data(), 2.0);
      CHECK(norm == want || (norm != norm && want != want));
      for (const Index row : {0, 1}) scaled[std::size_t(row * width)] *= scale;
    }
    host.step(cpu.grads.data(), scaled.data(), width, row_of);
    twins.check("replayed");
  }
}

// Room for many addresses has to be there before a capture.
void test_unprepared(Random& random) {
  Side cuda, cpu;
  const Twins<float> twins(random, std::vector<Index>(200, 3), 0, &cuda, &cpu);
  DevicePlan plan(index_of<Sgd>(Rules{}), cuda.tensors);
  const OwnStream stream;
  std::string text;
  try {
    Graph(stream.get(), [&] { plan.capture_step(cuda.grads.data(), {}, stream.get()); });
  } catch (const std::runtime_error& error) {
    text = error.what();
  }
  CHECK(text == "a plan of 200 tensors needs prepare_capture before a stream is captured");
  twins.check("unprepared");
}

// Replays of one captured attempt of two plans, of which some find a gradient that is not finite: steps are
// those of the CPU with the coefficients of so many steps, though the host does not know how many there were.
void test_attempts(Random& random) {
  const int rules[] = {index_of<Adam>(Rules{}), index_of<Sgd>(Rules{})};
  const Index widths[] = {kCommonCoefs + Index(Adam<double>::coefs.size), kCommonCoefs};
  Side cuda[2], cpu[2];
  const Twins<float> adam(random, {33, 5, 9000}, Adam<double>::states.size, &cuda[0], &cpu[0]);
  const Twins<float> sgd(random, {257}, 0, &cuda[1], &cpu[1]);
  std::vector<Guarded<float>> grads;
  std::vector<std::vector<const void*>> pointers(2);
  DevicePlan first(rules[0], cuda[0].tensors), second(rules[1], cuda[1].tensors);
  StepPlan hosts[] = {{rules[0], cpu[0].tensors}, {rules[1], cpu[1].tensors}};
  for (const int i : {0, 1})
    for (const PlanTensor& tensor : cuda[i].tensors) {
      grads.push_back(random.uniforms<float>(tensor.n, -1, 1));
      pointers[std::size_t(i)].push_back(grads.back().data());
    }
  const OwnStream stream;
  DeviceAttempts attempts({&first, &second}, {widths[0], widths[1]}, stream.get());
  const AttemptCounts before = attempts.counts();
  LossScale scale{8.0, 0.0, 0.0}, want = scale;
  const ScaleUpdate update{2.0, 0.25, 2.0};
  double norm = -1.0, want_norm = -1.0;
  bool taken = false;
  const Graph graph(stream.get(), [&] {
    attempts.step(pointers, {2.0, &scale, &norm, &norm, &taken}, stream.get());
    update_scale_on_device(update, false, &scale, stream.get());
  });
  const unsigned long waited = ::host_cuda::waits();
  Index steps = 0;
  for (Index turn = 0; turn < 12; ++turn) {
    const bool finite = turn % 3 != 1;
    float& element = grads[std::size_t(turn % 4)][turn % 5];
    if (!finite) element = turn % 2 ? NAN : INFINITY;
    // Rows for what the host holds possible: up to three steps less or more than there were.
    const Index least = std::max<Index>(steps - turn % 4, 0), counts = steps - least + 1 + turn % 3;
    std::vector<double> tables[2], now[2];
    std::vector<Ahead> ahead;
    for (const int i : {0, 1}) {
      for (Index count = least; count < least + counts; ++count) {
        std::vector<double> row = i == 0 ? coefficients<Adam>(false) : coefficients<Sgd>(false);
        row[4] /= double(count + 1);
        if (count == steps) now[i] = row;
        tables[i].insert(tables[i].end(), row.begin(), row.end());
      }
      ahead.push_back({tables[i].data(), 1, nullptr});
    }
    attempts.advance(ahead, counts, Index(before.taken) + least, false, stream.get());
    graph.launch(stream.get());
    if (finite) {
      double norms[2];
      for (const int i : {0, 1}) norms[i] = hosts[i].norm(pointers[std::size_t(i)].data(), 2.0);
      const double inverse = 1.0 / want.scale;
      want_norm = joint_norm(norms, 2) * inverse;
      for (const int i : {0, 1}) {
        now[i][0] *= inverse * clip_factor(want_norm, 2.0);
        hosts[i].step(pointers[std::size_t(i)].data(), now[i].data(), widths[i], nullptr);
      }
      ++steps;
    }
    want.found_inf = !finite;
    want = updated(want, update);
    element = 0.5f;
    CHECK(taken == finite && norm == want_norm);
    CHECK(scale.scale == want.scale && scale.growth_tracker == want.growth_tracker && scale.found_inf == 0);
    CHECK(attempts.counts().made - before.made == turn + 1 &&
          attempts.counts().taken - before.taken == steps);
    adam.check("attempted Adam");
    sgd.check("attempted SGD");
  }
  CHECK(::host_cuda::waits() == waited);
  CHECK(steps == 8 && want.scale < 8.0);
}

// An attempt that takes a flag for the answer, and a scale for each tensor, with coefficients that travel.
void test_flagged_attempts(Random& random) {
  Side cuda, cpu;
  const Twins<float> arrays(random, {33, 257}, 0, &cuda, &cpu);
  const Guarded<float> grads[] = {random.uniforms<float>(33, -1, 1), random.uniforms<float>(257, -1, 1)};
  const std::vector<const void*> pointers = {grads[0].data(), grads[1].data()};
  const int rule = index_of<Sgd>(Rules{});
  DevicePlan plan(rule, cuda.tensors);
  StepPlan host(rule, cpu.tensors);
  DeviceAttempts attempts({&plan}, {kCommonCoefs}, nullptr);
  const AttemptCounts before = attempts.counts();
  const std::vector<double> row = coefficients<Sgd>(false);
  std::vector<double> rows = row;
  rows.insert(rows.end(), row.begin(), row.end());
  rows[0] *= 0.5, rows[std::size_t(kCommonCoefs)] *= 0.25;
  const std::int32_t row_of[] = {0, 1};
  for (const double found : {1.0, 0.0}) {
    LossScale scale{8.0, 0.0, 0.0};
    const double scales[] = {0.5, 0.25};
    Attempt attempt{std::nullopt, &scale};
    attempt.found = &found;
    attempt.scales = {{scales, true}};
    attempts.advance({{row.data(), 1, nullptr}}, 1, before.taken, true, nullptr);
    const unsigned long kernels = ::host_cuda::kernels();
    attempts.step({pointers}, attempt, nullptr);
    CHECK(::host_cuda::kernels() - kernels == 2 && scale.found_inf == found);
    if (found == 0.0) host.step(pointers.data(), rows.data(), kCommonCoefs, row_of);
    arrays.check("flagged SGD");
  }
  CHECK(attempts.counts().made - before.made == 2 && attempts.counts().taken - before.taken == 1);
}

// Gradients of two tensors, aligned for packs or not, divided by a scale; one of them may not be finite.
template <class S>
void test_unscale(Random& random, bool aligned, bool finite) {
  std::vector<Guarded<S>> params, grads, wanted;
  std::vector<PlanTensor> tensors;
  std::vector<const void*> pointers;
  const double inverse = 1.0 / 60.0;
  for (const Index n : {Index(7), Index(40001)}) {
    const Index room = (n + 7) / 8 * 8 + (aligned ? 0 : 1);  // what ends at a page begins at 16 bytes, or not
    params.push_back(any_numbers<S>(random, n));
    grads.push_back(any_numbers<S>(random, room));
    for (Index i = 0; i < n; ++i)
      if (!is_finite(load(grads.back()[i]))) grads.back()[i] = Store<S>::from(Compute<S>(1));
    if (!finite && n > 7) grads.back()[n - 1] = Store<S>::from(Compute<S>(NAN));
    wanted.push_back(copy(grads.back()));
    for (Index i = 0; i < n; ++i)
      wanted.back()[i] = Store<S>::from(load(wanted.back()[i]) * Compute<S>(inverse));
    tensors.push_back({params.back().data(), {}, nullptr, n, kDType<S>});
    pointers.push_back(grads.back().data());
  }
  tensors.push_back({params[0].data(), {}, nullptr, 7, kDType<S>});
  pointers.push_back(nullptr);
  DevicePlan plan(index_of<Sgd>(Rules{}), tensors), empty(index_of<Sgd>(Rules{}), {});
  LossScale scale{60.0, 0.0, 0.0};
  double found = -1.0;
  DeviceAttempts::unscale({&plan, &empty}, {pointers, {}}, &scale, &found, nullptr);
  CHECK(found == (finite ? 0.0 : 1.0) && scale.found_inf == found && scale.scale == 60.0);
  for (std::size_t k = 0; k < grads.size(); ++k)
    CHECK(std::memcmp(grads[k].data(), wanted[k].data(), std::size_t(tensors[k].n) * sizeof(S)) == 0);
}

}  // namespace

void test_cuda_step() {
  Random random(11);
  for (const bool aligned : {false, true})
    for (const bool finite : {false, true}) {
      test_unscale<float>(random, aligned, finite);
      test_unscale<double>(random, aligned, finite);
      test_unscale<Bf16>(random, aligned, finite);
    }
  test_attempts(random);
  test_flagged_attempts(random);
  test_captured(random, 5);
  test_captured(random, 2 * Inline<void*>::kSize + 7);
  test_unprepared(random);
  check_rules(Rules{}, random);
  check_storage<Adam, float>(index_of<Adam>(Rules{}), random, kLargeSizes);
  check_storage<Sgd, Bf16>(index_of<Sgd>(Rules{}), random, kLargeSizes);
  // More tensors and coefficients than travel with a launch.
  const Index many = 2 * Inline<void*>::kSize + 7;
  check_storage<Adam, float>(index_of<Adam>(Rules{}), random, std::vector<Index>(std::size_t(many), 9));
  test_many_coefs(random);
  const DevicePlan empty(0, {{nullptr, {}, nullptr, 0, DType::f32}});
  empty.step({}, nullptr);
  DevicePlan nothing(0, {{nullptr, {}, nullptr, 0, DType::f32}});
  const void* const grad = nullptr;
  const std::vector<double> coefs(std::size_t(kCommonCoefs), 0.0);
  double norms[2] = {-1, -1};
  nothing.measure_from_host({&grad, coefs.data(), kCommonCoefs}, kCommonCoefs, norms, nullptr);
  CHECK(norms[0] == 0 && norms[1] == 0);
}

}  // namespace fastopt::test
