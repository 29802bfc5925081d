#include "core/program.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/batch_norm.hpp"
#include "core/chunks.hpp"
#include "core/gemm.hpp"
#include "core/losses.hpp"
#include "core/parallel.hpp"

namespace fastopt {
namespace {

constexpr Index kLine = 64;
constexpr Index kBytesAhead = 6144, kMostAhead = 4096;  // of samples that are gathered
// Of tasks that take rows through several layers: bytes of the weights at most, which each packs; rows times
// bytes at least, some 10 us of one thread; rows at least, which packing is worth, and at about most, so that
// what they leave stays in cache.
constexpr Index kPackedBytes = Index(1) << 17, kLeastWork = Index(1) << 19, kFewRows = 32, kManyRows = 128;

}  // namespace

Program::Program(DType dtype, bool bf16, std::vector<ProgramLayer> layers, const ProgramLoss& loss,
                 std::vector<ProgramPlan> plans)
    : dtype_(dtype), bf16_(bf16), item_(item_bytes(dtype)), loss_(loss), plans_(std::move(plans)) {
  place_norm_gradients(layers);
  for (ProgramLayer& layer : layers) {
    for (const ProgramParameter* p : {&layer.weight, &layer.bias}) {
      if (!p->trained()) continue;
      uses_ = std::max(uses_, p->use + 1);
      fused_ = fused_ || !p->grad;
    }
    dropouts_ += layer.dropout;
    layers_.push_back({layer});
  }
  lowest_ = lowest_trained(layers_);
  for (ProgramPlan& plan : plans_) {
    plan.grads.assign(plan.plan->tensors().size(), nullptr);
    coefs_width_ += plan.rows * plan.width;
  }
  for (const PlacedLayer& layer : layers_)
    for (const ProgramParameter* p : {&layer.weight, &layer.bias})
      if (p->plan >= 0) plans_[std::size_t(p->plan)].grads[std::size_t(p->tensor)] = p->grad;
  scaled_.resize(std::size_t(coefs_width_));
}

// Those of batch normalisations come before their update: nobody else may want them.
void Program::place_norm_gradients(std::vector<ProgramLayer>& layers) {
  Index items = 0;
  const auto for_each = [&](const auto& f) {
    for (ProgramLayer& layer : layers)
      for (ProgramParameter* p : {&layer.weight, &layer.bias})
        if (layer.kind == LayerKind::batch_norm && p->plan >= 0 && !p->grad) f(*p, layer.out);
  };
  for_each([&](ProgramParameter&, Index n) { items += n; });
  char* room = norm_gradients_.reserve(std::max<Index>(items * item_, 64));
  for_each([&](ProgramParameter& p, Index n) {
    p.grad = room;
    room += n * item_;
  });
}

void Program::reserve(Index rows) {
  if (rows <= capacity_) return;
  const Index bytes = place_layers(layers_, lowest_, item_, rows, nullptr);
  place_layers(layers_, lowest_, item_, rows, memory_.reserve(std::max<Index>(bytes, 64)));
  capacity_ = rows;
}

// Forward ------------------------------------------------------------------------------------------------

// Tasks take rows through the last layers, so that a thread reads what it has written itself and waits for
// others but once. The layers before follow one another, all threads together: where rows depend on one
// another, and where packing weights in each task takes too long. The number of threads may change between
// the calls of a step, which need not agree.
Program::RowTasks Program::row_tasks(Index rows) const {
  const Index threads = num_threads(), all = Index(layers_.size());
  Index layer = all, bytes = 0;
  for (; layer > 0; --layer) {
    const PlacedLayer& below = layers_[std::size_t(layer - 1)];
    const Index more = below.kind == LayerKind::linear ? below.in * below.out * item_ : 0;
    if (below.kind == LayerKind::batch_norm || bytes + more > kPackedBytes) break;
    bytes += more;
  }
  const Index tasks = std::min(threads * pieces(rows, threads * kManyRows), rows / kFewRows);
  if (threads == 1 || tasks < 2 || rows * bytes < kLeastWork) return {all, rows};
  return {layer, (pieces(rows, tasks) + 3) / 4 * 4};  // even: two rows share a list of zeros
}

// What each layer reads and writes in a batch of so many rows.
void Program::begin_forward(const void* x, Index rows, bool training, void* out) {
  for (PlacedLayer& layer : layers_) {
    layer.input = x;
    layer.result = out && &layer == &layers_.back() ? out : layer.output;
    if (layer.kind == LayerKind::linear) {
      layer.product = forward_args(layer, rows, training);
      layer.product.bf16 = bf16_;
    } else if (layer.kind == LayerKind::pointwise) {
      layer.x = layer.input;
      layer.y = layer.result;
      if (layer.activation < 0 && !layer.mask.on) layer.result = layer.input;
    }
    x = layer.result;
  }
}

// From layer `first` on. `fetch` brings rows of what it reads to where begin_forward was told they are.
void Program::forward(Index first, Index rows, void* out, const Fetch& fetch) {
  const RowTasks tasks = row_tasks(rows);
  const Index all = Index(layers_.size()), begin_layer = std::max(first, tasks.layer);
  const bool by_tasks = fetch && begin_layer == first && first < all;
  if (fetch && !by_tasks) run_chunks(rows, row_chunk(layers_.front().out), rows * layers_.front().out, fetch);
  for (Index l = first; l < tasks.layer; ++l) {
    PlacedLayer& layer = layers_[std::size_t(l)];
    if (layer.kind == LayerKind::linear)
      gemm(dtype_, layer.product);
    else if (layer.kind == LayerKind::batch_norm)
      forward_batch_norm(layer, rows);
    else
      run_chunks(rows, row_chunk(layer.out), rows * layer.out,
                 [&](Index begin, Index end) { forward_rows(layer, begin, end); });
  }
  if (begin_layer < all)
    parallel_for(pieces(rows, tasks.rows), true, [&](Index i) {
      const Index begin = i * tasks.rows, end = std::min(rows, begin + tasks.rows);
      if (by_tasks) fetch(begin, end);
      for (Index l = begin_layer; l < all; ++l) forward_rows(layers_[std::size_t(l)], begin, end);
    });
  const void* const result = layers_.back().result;
  if (out && result != out) std::memcpy(out, result, std::size_t(rows * this->out() * item_));
}

// Rows of a layer that is no batch normalisation.
void Program::forward_rows(const PlacedLayer& layer, Index begin, Index end) const {
  if (layer.kind == LayerKind::linear) {
    GemmArgs args = layer.product, part = args;
    part.m = end - begin;
    part.a.data = static_cast<const char*>(args.a.data) + begin * args.a.row * item_;
    args.zeros = kernels().gemm[int(dtype_)].find_zeros(part);
    run_gemm(dtype_, args, begin, end, 0, args.n);
  } else if (layer.kind == LayerKind::pointwise) {
    const ElementwiseKernels& kernel = kernels().elementwise[int(dtype_)];
    void* const y = const_cast<void*>(layer.y);
    if (layer.activation >= 0)
      kernel.activation({layer.activation, layer.params, layer.input, nullptr, 1, y}, begin * layer.out,
                        end * layer.out);
    else if (layer.mask.on)
      kernel.dropout(mask_args(layer.mask, layer.input, y), begin * layer.out, end * layer.out);
  } else {
    const RowKernels& row = kernels().rows[int(dtype_)];
    const auto kernel = layer.kind == LayerKind::softmax ? row.softmax : row.log_softmax;
    kernel({layer.input, const_cast<void*>(layer.result), layer.out}, begin, end);
  }
}

void Program::forward_batch_norm(PlacedLayer& layer, Index rows) {
  if (layer.of_batch)
    batch_statistics(dtype_, layer.input, rows, layer.out, layer.norm.eps, layer.saved);
  else
    running_rstd(dtype_, layer.norm.running_var, layer.out, layer.norm.eps, layer.saved.rstd);
  const BatchNormArgs args = norm_args(layer);
  const auto kernel = kernels().batch_norm[int(dtype_)].normalize;
  run_chunks(rows, row_chunk(layer.out), rows * layer.out,
             [&](Index begin, Index end) { kernel(args, begin, end); });
}

// Loss ---------------------------------------------------------------------------------------------------

// The loss of the output, and its gradient by the result of the last layer's operation.
double Program::evaluate(const ProgramRun& run, const void* target, const void* weight, Index rows,
                         Index samples) {
  PlacedLayer& last = layers_.back();
  const Index columns = last.out, size = rows * columns, top = Index(layers_.size()) - 1;
  const bool by_element = loss_.kind == LossKind::elementwise;
  const Index* const classes = run.classes ? static_cast<const Index*>(target) : nullptr;
  double divisor = 1.0;
  if (loss_.reduction == Reduction::batchmean) divisor = double(samples);
  if (loss_.reduction == Reduction::mean)
    divisor = by_element ? double(size)
              : classes  ? used_weight(dtype_, classes, rows, loss_.class_weight, loss_.ignore_index)
                         : double(rows);
  double total = 0.0;
  if (by_element) {
    const LossArgs args = loss_args(loss_, last, target, weight, run.param, divisor);
    const auto kernel = kernels().sums[int(dtype_)].loss;
    total = merge_chunks(size, kChunk, size, parts_, [&](Index begin, Index end) {
      const double part = kernel(args, begin, end);
      begin_backward(top, begin, end);
      return part;
    });
  } else {
    const CrossEntropyArgs args = class_loss_args(loss_, last, run.classes, target, divisor);
    const RowKernels& row = kernels().rows[int(dtype_)];
    const auto kernel = loss_.kind == LossKind::nll ? row.nll : row.cross_entropy;
    total = merge_chunks(rows, row_chunk(columns), size, parts_, [&](Index begin, Index end) {
      const double part = kernel(args, begin, end);
      begin_backward(top, begin * columns, end * columns);
      return part;
    });
  }
  const double value = total / divisor;
  return dtype_ == DType::f32 ? double(float(value)) : value;
}

// Backward -----------------------------------------------------------------------------------------------

// From the gradient by what a layer returns to that by the result of its operation, in place: through dropout
// and activation.
void Program::begin_backward(Index l, Index begin, Index end) {
  PlacedLayer& layer = layers_[std::size_t(l)];
  const ElementwiseKernels& kernel = kernels().elementwise[int(dtype_)];
  if (layer.mask.on) kernel.dropout(mask_args(layer.mask, layer.gradient, layer.gradient), begin, end);
  if (layer.activation < 0) return;
  kernel.activation_grad({layer.activation, layer.params, layer.gradient, layer.x, layer.y, layer.gradient},
                         begin, end);
}

// The gradients by the results of all operations, from the last layer down to the lowest that is trained.
void Program::backward(Index rows) {
  const RowTasks tasks = row_tasks(rows);
  const Index all = Index(layers_.size()), first = std::max(tasks.layer, lowest_ + 1);
  if (first < all)
    parallel_for(pieces(rows, tasks.rows), true, [&](Index i) {
      const Index begin = i * tasks.rows, end = std::min(rows, begin + tasks.rows);
      for (Index l = all - 1; l >= first; --l) backward_rows(l, rows, begin, end);
    });
  for (Index l = std::min(first, all) - 1; l > lowest_; --l) backward_layer(l, rows);
  if (lowest_ < Index(layers_.size()) && layers_[std::size_t(lowest_)].kind == LayerKind::batch_norm)
    sum_batch_norm(layers_[std::size_t(lowest_)], rows, false);
}

// The same, with each layer's own gradients as soon as they can be had. They are stored, so nothing is
// updated yet.
void Program::backward_telling(Index rows, const Ready& ready) {
  const bool parallel = begin_weights(rows);
  for (Index l = Index(layers_.size()) - 1; l >= lowest_; --l) {
    const auto first =
        std::find_if(tasks_.begin(), tasks_.end(), [&](const Task& t) { return t.layer == l; });
    const auto last = std::find_if(first, tasks_.end(), [&](const Task& t) { return t.layer != l; });
    run_tasks(first - tasks_.begin(), last - tasks_.begin(), rows, parallel, nullptr);
    if (first != last) ready(l);
    if (l > lowest_) backward_layer(l, rows);
  }
  end_weights();
}

void Program::backward_layer(Index l, Index rows) {
  const PlacedLayer &layer = layers_[std::size_t(l)], &below = layers_[std::size_t(l - 1)];
  if (layer.kind == LayerKind::linear)
    gemm(dtype_, backward_product(l, rows));
  else if (layer.kind == LayerKind::batch_norm)
    backward_batch_norm(l, rows);
  else if (layer.kind != LayerKind::pointwise || below.mask.on || below.activation >= 0)
    run_chunks(rows, row_chunk(below.out), rows * below.out,
               [&](Index begin, Index end) { backward_rows(l, rows, begin, end); });
}

GemmArgs Program::backward_product(Index l, Index rows) const {
  GemmArgs args = backward_args(layers_[std::size_t(l)], layers_[std::size_t(l - 1)], rows);
  args.bf16 = bf16_;
  return args;
}

// Some of a batch's rows, of a layer that is no batch normalisation.
void Program::backward_rows(Index l, Index rows, Index begin, Index end) {
  const PlacedLayer &layer = layers_[std::size_t(l)], &below = layers_[std::size_t(l - 1)];
  if (layer.kind == LayerKind::linear) {
    const GemmArgs args = backward_product(l, rows);
    run_gemm(dtype_, args, begin, end, 0, args.n);
    return;
  }
  if (layer.kind != LayerKind::pointwise) {
    const RowKernels& row = kernels().rows[int(dtype_)];
    const auto kernel = layer.kind == LayerKind::softmax ? row.softmax_grad : row.log_softmax_grad;
    kernel({layer.gradient, layer.result, below.gradient, layer.out}, begin, end);
  }
  begin_backward(l - 1, begin * below.out, end * below.out);
}

// The gradients of weight and bias, and the sums that the input's needs.
void Program::sum_batch_norm(const PlacedLayer& layer, Index rows, bool dx) {
  const BatchGradients wanted = norm_gradients(layer, dx);
  if (wanted.weight || wanted.bias || wanted.center)
    batch_norm_sums(dtype_, layer.gradient, layer.input, rows, layer.out,
                    {const_cast<void*>(norm_args(layer).mean), layer.saved.rstd, nullptr}, wanted);
}

void Program::backward_batch_norm(Index l, Index rows) {
  const PlacedLayer &layer = layers_[std::size_t(l)], &below = layers_[std::size_t(l - 1)];
  const Index columns = layer.out;
  sum_batch_norm(layer, rows, true);
  const BatchNormGradArgs args = norm_grad_args(layer, below.gradient);
  const BatchNormKernels& kernel = kernels().batch_norm[int(dtype_)];
  run_chunks(rows, row_chunk(columns), rows * columns, [&](Index begin, Index end) {
    layer.of_batch ? kernel.normalize_grad(args, begin, end)
                   : kernel.normalize(constant_grad_args(args), begin, end);
    begin_backward(l - 1, begin * columns, end * columns);
  });
}

// Takes a step's batch into the running statistics.
void Program::track_batches() {
  for (PlacedLayer& layer : layers_) {
    if (!layer.tracks) continue;
    const ProgramNorm& norm = layer.norm;
    ++*norm.batches;
    track(dtype_, layer.saved, layer.out, norm.momentum, double(*norm.batches), norm.running_mean,
          norm.running_var);
  }
}

// Runs ---------------------------------------------------------------------------------------------------

// Samples [begin, end) of a batch that are `bytes` each, side by side.
void Program::copy_samples(const Batch& batch, Index bytes, Index begin, Index end, char* to) {
  copy_parts(batch, bytes, 0, bytes, begin, end, to, bytes);
}

// Bytes [first, last) of each, in rows that are `row` bytes apart.
void Program::copy_parts(const Batch& batch, Index bytes, Index first, Index last, Index begin, Index end,
                         char* to, Index row) {
  const Index some = last - first,
              rows_ahead = std::clamp<Index>(kBytesAhead / std::max<Index>(some, 1), 1, 8);
  for (Index i = begin; i < end; ++i) {
    // Rows lie anywhere. Into the second-level cache a core fetches more lines at once than into the first.
    const char* const ahead = batch.at(std::min(i + rows_ahead, batch.samples - 1), bytes) + first;
    for (Index at = 0; at < std::min(some, kMostAhead); at += kLine) __builtin_prefetch(ahead + at, 0, 2);
    std::memcpy(to + i * row, batch.at(i, bytes) + first, std::size_t(some));
  }
}

// The samples of a batch side by side: where they lie, or copied to `room`.
const void* Program::gather(const void* from, Index bytes, const Index* order, Index first, Index samples,
                            Buffer& room) {
  const char* const all = static_cast<const char*>(from);
  if (!order) return all + first * bytes;
  const Batch batch{all, order + first, samples};
  char* const to = room.reserve(samples * bytes);
  const Index together = std::max<Index>(kChunk * 4 / std::max<Index>(bytes, 1), 1);
  run_chunks(samples, together, samples * bytes / 8,
             [&](Index begin, Index end) { copy_samples(batch, bytes, begin, end, to); });
  return to;
}

ProgramStop Program::run(ProgramRun& run, const Ready& ready) {
  struct Restored {
    Program& program;
    ~Restored() { program.give_back_strips(); }
  } restored{*this};
  const std::uint64_t masks = std::uint64_t(set_masks(layers_, run.rates, run.seed, run.offset));
  set_norms(layers_, run.rates ? run.rates + dropouts_ : nullptr);
  wants_squares_ = run.squares != nullptr;
  if (wants_squares_) begin_squares();
  const Index target_bytes = run.repeat * (run.classes ? Index(sizeof(Index)) : out() * item_);
  for (Index step = 0; step < run.steps; ++step) {
    const Index first = run.begin + step * run.batch, samples = std::min(run.batch, run.end - first);
    const Index rows = samples * run.repeat;
    reserve(rows);
    const Index x_bytes = run.repeat * in() * item_;
    const void* const target = gather(run.target, target_bytes, run.order, first, samples, target_room_);
    if (run.classes) {
      const Index* const classes = static_cast<const Index*>(target);
      const Index bad = first_bad_class(classes, rows, out(), loss_.ignore_index);
      if (bad < rows) return {ProgramStop::bad_class, bad, double(classes[bad])};
    }
    const Batch batch{static_cast<const char*>(run.x) + (run.order ? 0 : first * x_bytes),
                      run.order ? run.order + first : nullptr, samples};
    if (use_strips(run, step, batch)) {
      begin_forward(nullptr, rows, true, nullptr);
      forward_strips(batch);
    } else if (run.order && run.repeat == 1 && row_tasks(rows).layer == 0) {
      char* const x = x_room_.reserve(samples * x_bytes);
      begin_forward(x, rows, true, nullptr);
      forward(0, rows, nullptr, [&](Index begin, Index end) { copy_samples(batch, x_bytes, begin, end, x); });
    } else {
      begin_forward(gather(run.x, x_bytes, run.order, first, samples, x_room_), rows, true, nullptr);
      forward(0, rows, nullptr);
    }
    if (loss_.probabilities) {
      const ProgramStop stop = require_probabilities(rows * out());
      if (stop.reason != ProgramStop::none) return stop;
    }
    const void* weight = run.weight;
    if (run.gather_weight)
      weight = gather(weight, run.repeat * out() * item_, run.order, first, samples, weight_room_);
    run.losses[step] = evaluate(run, target, weight, rows, samples);
    const double* const coefs = run.coefs + step * coefs_width_;
    const bool telling = ready && !fused_ && uses_ <= 1;
    if (!telling) backward(rows);
    if (run.squares) run.squares[step] = weight_squares();
    telling ? backward_telling(rows, ready) : update_weights(rows, coefs);
    step_plans(run, coefs);
    track_batches();
    for (PlacedLayer& layer : layers_) layer.mask.offset += masks;
    ++steps_;
  }
  return {};
}

ProgramStop Program::require_probabilities(Index size) const {
  const auto check = [&](const auto* y) -> ProgramStop {
    for (Index i = 0; i < size; ++i)
      if (!is_probability(y[i])) return {ProgramStop::no_probability, i, double(y[i])};
    return {};
  };
  const void* const y = layers_.back().result;
  return dtype_ == DType::f32 ? check(static_cast<const float*>(y)) : check(static_cast<const double*>(y));
}

void Program::predict(const void* x, Index rows, Index batch, void* out) {
  for (PlacedLayer& layer : layers_) layer.mask.on = false;
  set_norms(layers_, nullptr);
  reserve(std::min(rows, batch));
  for (Index first = 0; first < rows; first += batch) {
    const Index some = std::min(batch, rows - first);
    void* const to = static_cast<char*>(out) + first * this->out() * item_;
    begin_forward(static_cast<const char*>(x) + first * in() * item_, some, false, to);
    forward(0, some, to);
  }
}

}  // namespace fastopt
