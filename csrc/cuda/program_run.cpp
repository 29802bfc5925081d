// Runs of many steps: what goes to the device before them, graphs of steps, and what comes back.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/program.hpp"
#include "formulas/common.hpp"

namespace fastopt {
namespace {

constexpr Index kManySteps = 16;        // of a graph for long runs
constexpr std::size_t kMostKinds = 16;  // of batches whose graphs are kept

// Room for so many items that a run needs, or twice what there was. True where it lies elsewhere now.
bool reserve_items(DeviceArray<void>& memory, Index& room, Index items, Index item) {
  if (items <= room) return false;
  memory.reset();
  const Index wanted = std::max({items, 2 * room, Index(1024)});
  room = 0;
  memory = device_memory(wanted * item);
  room = wanted;
  return true;
}

}  // namespace

// Streams ------------------------------------------------------------------------------------------------

// The stream to work on, behind the last call's work and what is on the given one.
CudaStream DeviceProgram::begin(CudaStream given) {
  CudaStream stream = given;
  if (!can_capture(given)) {
    if (!own_stream_) own_stream_ = std::make_unique<OwnStream>();
    stream = own_stream_->get();
    given_.record(given);
    given_.hold(stream);
  }
  done_.hold(stream);
  return stream;
}

void DeviceProgram::end(CudaStream stream, CudaStream given) {
  done_.record(stream);
  if (stream != given) done_.hold(given);
}

// Data ---------------------------------------------------------------------------------------------------

// A step's numbers as its kernels read them.
void DeviceProgram::stage_coefs(const double* from, void* to) const {
  double* const numbers = static_cast<double*>(to);
  if (coefs_width_ > 0) std::memcpy(numbers, from, std::size_t(coefs_width_) * sizeof(double));
  double* at = numbers + coefs_width_;
  for (const Index row : fused_rows_) {
    const LinearUpdate update = linear_update(from + row);
    for (const double value : {update.of_gradient, update.of_parameter}) {
      const float narrow = float(value);
      *at = value;
      if (dtype_ == DType::f32) std::memcpy(at, &narrow, sizeof narrow);
      ++at;
    }
  }
}

// What the run's steps read. `first`: the sample of the first batch, in the order that is uploaded.
void DeviceProgram::upload(const ProgramRun& run, Index first, CudaStream stream) {
  const Index number = Index(sizeof(double)), width_bytes = numbers_width() * number;
  const Index samples = std::min(run.end - run.begin, run.batch * run.steps);
  const Index state_bytes = Index(sizeof(Progress)) + width_bytes,
              coefs_bytes = run.steps > 1 ? run.steps * width_bytes : 0,
              order_bytes = run.order ? samples * Index(sizeof(Index)) : 0;
  reserve_items(losses_, losses_room_, run.steps, number);
  reserve_items(coefs_, coefs_room_, run.steps > 1 ? run.steps * numbers_width() : 0, number);
  // For all samples, so that the next part of the order finds room in the same place.
  if (run.order && reserve_items(order_, order_room_, run.end, Index(sizeof(Index)))) recorded_.clear();
  uploaded_.wait();  // until the last run's copies are done
  char* const state = staged_.reserve(state_bytes + coefs_bytes + order_bytes);
  char *const coefs = state + state_bytes, *const order = coefs + coefs_bytes;
  Progress start;
  start.steps = run.steps;
  start.first = first;
  start.mask_offset = run.offset;
  start.coefs = static_cast<const double*>(coefs_.get());
  start.losses = static_cast<double*>(losses_.get());
  std::memcpy(state, &start, sizeof(start));
  stage_coefs(run.coefs, state + sizeof(start));
  for (Index s = 0; run.steps > 1 && s < run.steps; ++s)
    stage_coefs(run.coefs + s * coefs_width_, coefs + s * width_bytes);
  if (order_bytes > 0) std::memcpy(order, run.order + run.begin, std::size_t(order_bytes));
  copy_to_device(progress(), state, state_bytes, stream);
  if (coefs_bytes > 0) copy_to_device(coefs_.get(), coefs, coefs_bytes, stream);
  if (order_bytes > 0) copy_to_device(order_.get(), order, order_bytes, stream);
  uploaded_.record(stream);
}

Index DeviceProgram::target_bytes(const Batch& batch) const {
  return batch.repeat * (batch.classes ? Index(sizeof(Index)) : out() * item_);
}

// Brings the samples that the progress points to into the room.
void DeviceProgram::gather(const Batch& batch, const void* x, const void* target, CudaStream stream) {
  const Index* const order = batch.ordered ? static_cast<const Index*>(order_.get()) : nullptr;
  const Index* const first = &progress()->first;
  gather_rows_on_device(x, batch.repeat * in() * item_, order, first, batch.samples, x_room_, stream);
  gather_rows_on_device(target, target_bytes(batch), order, first, batch.samples, target_room_, stream);
  if (batch.gather_weight)
    gather_rows_on_device(batch.weight, batch.repeat * out() * item_, order, first, batch.samples,
                          weight_room_, stream);
}

void DeviceProgram::queue_class_check(const ProgramRun& run, Index samples, CudaStream stream) {
  const Index* const order = run.order ? static_cast<const Index*>(order_.get()) : nullptr;
  check_classes_on_device({static_cast<const Index*>(run.target), order, run.begin, samples, run.repeat,
                           out(), loss_.ignore_index},
                          progress(), stream);
}

// Whether products may update weights in this run: nothing bounds gradients, and nothing can stop the run
// once its steps are queued, since a product would not see it. Classes are known to be good when the device
// has said so; a single step does not wait for that.
bool DeviceProgram::can_fuse(const ProgramRun& run, CudaStream stream) {
  if (!fuses_ || fused_rows_.empty() || !std::isinf(run.max_norm) || loss_.probabilities) return false;
  for (Index s = 0; s < run.steps; ++s)
    for (const Index row : fused_rows_)
      if (is_bounded(run.coefs + s * coefs_width_ + row)) return false;
  if (!run.classes) return true;
  if (run.steps == 1) return false;
  char* const results = results_.reserve(Index(sizeof(Progress)));
  copy_to_host(results, progress(), Index(sizeof(Progress)), stream);
  synchronize(stream);
  Progress found;
  std::memcpy(&found, results, sizeof(found));
  return found.stopped == Progress::none;
}

// Runs ---------------------------------------------------------------------------------------------------

ProgramStop DeviceProgram::run(ProgramRun& run, CudaStream given) {
  const Index samples = std::min(run.end - run.begin, run.batch * run.steps);
  Batch batch{run.x,
              run.target,
              run.classes,
              run.order != nullptr,
              std::min(run.batch, samples),
              run.repeat,
              run.weight,
              run.param,
              run.gather_weight,
              {run.rates, run.rates + dropouts_ + batch_norms_},
              run.seed,
              run.max_norm,
              false};
  reserve(batch.rows());
  const CudaStream stream = begin(given);
  upload(run, run.order ? 0 : run.begin, stream);
  if (run.classes) queue_class_check(run, samples, stream);
  batch.fused = can_fuse(run, stream);
  Batch rest = batch;
  rest.samples = samples - (run.steps - 1) * run.batch;
  if (run.steps == 1) {
    // Data that comes batch by batch lies elsewhere each time: it is no part of the graph.
    gather(batch, run.x, run.target, stream);
    batch.x = batch.target = nullptr;
    if (batch.gather_weight) batch.weight = nullptr;
    batch.ordered = false;
    replay(batch, 1, stream);
  } else {
    const Index smaller = rest.samples < batch.samples;
    replay(batch, run.steps - smaller, stream);
    if (smaller) replay(rest, 1, stream);
  }
  end(stream, given);
  return download(run, stream);
}

// Queues so many steps. The first of a kind is not captured: kernels are loaded and products tuned then, and
// some kinds never come again.
void DeviceProgram::replay(const Batch& batch, Index steps, CudaStream stream) {
  const auto queue = [&](Index n) {
    for (Index i = 0; i < n; ++i) {
      if (batch.x) gather(batch, batch.x, batch.target, stream);
      queue_step(batch, stream);
    }
  };
  const auto capture = [&](std::unique_ptr<Graph>& graph, Index n) {
    if (graph) return;
    prepare(batch);
    graph = std::make_unique<Graph>(stream, [&] { queue(n); });
  };
  const auto known = std::find_if(recorded_.begin(), recorded_.end(),
                                  [&](const Recorded& entry) { return entry.batch == batch; });
  if (!use_graphs_ || known == recorded_.end()) {
    prepare(batch);
    if (!use_graphs_) return queue(steps);
    recorded_.push_front({batch, nullptr, nullptr});
    if (recorded_.size() > kMostKinds) recorded_.pop_back();
    queue(1);
    --steps;
  } else {
    recorded_.splice(recorded_.begin(), recorded_, known);
  }
  Recorded& graphs = recorded_.front();
  if (steps >= 2 * kManySteps) capture(graphs.many, kManySteps);
  for (; graphs.many && steps >= kManySteps; steps -= kManySteps) graphs.many->launch(stream);
  if (steps > 0) capture(graphs.one, 1);
  for (; steps > 0; --steps) graphs.one->launch(stream);
}

// Waits for the steps, and brings back their losses and where they ended.
ProgramStop DeviceProgram::download(ProgramRun& run, CudaStream stream) {
  const Index state_bytes = Index(sizeof(Progress)),
              losses_bytes = run.steps > 1 ? run.steps * Index(sizeof(double)) : 0;
  char* const results = results_.reserve(state_bytes + losses_bytes);
  copy_to_host(results, progress(), state_bytes, stream);
  if (losses_bytes > 0) copy_to_host(results + state_bytes, losses_.get(), losses_bytes, stream);
  synchronize(stream);
  Progress reached;
  std::memcpy(&reached, results, sizeof(reached));
  if (run.steps > 1)
    std::memcpy(run.losses, results + state_bytes, std::size_t(reached.step) * sizeof(double));
  else if (reached.step > 0)
    run.losses[0] = reached.last_loss;
  steps_ += reached.step;
  if (!std::isinf(run.max_norm)) run.norm = reached.norm;
  return stop_of(reached, run.classes ? static_cast<const Index*>(run.target) : nullptr, stream);
}

// Of classes it tells which one has stopped the run, of outputs that is known.
ProgramStop DeviceProgram::stop_of(const Progress& reached, const Index* classes, CudaStream stream) {
  if (reached.stopped == Progress::none) return {};
  const Index at = Index(reached.stop_at);
  if (!classes) return {ProgramStop::no_probability, at, reached.stop_value};
  Index value;
  copy_to_host(&value, classes + at, Index(sizeof(value)), stream);
  synchronize(stream);
  return {ProgramStop::bad_class, at, double(value)};
}

// Other calls --------------------------------------------------------------------------------------------

void DeviceProgram::predict(const void* x, Index rows, Index batch, void* out, CudaStream stream) {
  reserve(std::min(rows, batch));
  for (PlacedLayer& layer : layers_) layer.mask.on = false;
  set_norms(layers_, nullptr);
  done_.hold(stream);
  for (Index first = 0; first < rows; first += batch) {
    const Index n = std::min(batch, rows - first);
    void* const to = static_cast<char*>(out) + first * this->out() * item_;
    connect(static_cast<const char*>(x) + first * in() * item_, false, to);
    reserve_scratch(n, false);
    queue_forward(n, false, stream);
    const void* const result = layers_.back().result;
    if (result != to) copy_in_device(to, result, n * this->out() * item_, stream);
  }
  done_.record(stream);
}

ProgramStop DeviceProgram::check_classes(const Index* target, Index n, CudaStream stream) {
  Progress reached;
  done_.hold(stream);
  copy_to_device(progress(), &reached, Index(sizeof(reached)), stream);
  check_classes_on_device({target, nullptr, 0, n, 1, out(), loss_.ignore_index}, progress(), stream);
  copy_to_host(&reached, progress(), Index(sizeof(reached)), stream);
  synchronize(stream);
  return stop_of(reached, target, stream);
}

}  // namespace fastopt
