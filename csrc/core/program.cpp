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
constexpr Index kRowsAhead = 2, kMostAhead = 4096;  // of samples that are gathered

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

void Program::forward(const void* x, Index rows, bool training, void* out) {
  for (PlacedLayer& layer : layers_) {
    layer.input = x;
    void* const y = out && &layer == &layers_.back() ? out : layer.output;
    layer.result = y;
    switch (layer.kind) {
      case LayerKind::linear:
        forward_linear(layer, rows, training);
        break;
      case LayerKind::pointwise:
        forward_pointwise(layer, rows * layer.out, y);
        break;
      case LayerKind::batch_norm:
        forward_batch_norm(layer, rows);
        break;
      default: {
        const SoftmaxArgs args{x, y, layer.out};
        const RowKernels& row = kernels().rows[int(dtype_)];
        const auto kernel = layer.kind == LayerKind::softmax ? row.softmax : row.log_softmax;
        run_chunks(rows, row_chunk(layer.out), rows * layer.out,
                   [&](Index begin, Index end) { kernel(args, begin, end); });
      }
    }
    x = layer.result;
  }
  if (out && x != out) std::memcpy(out, x, std::size_t(rows * this->out() * item_));
}

void Program::forward_linear(PlacedLayer& layer, Index rows, bool training) {
  GemmArgs args = forward_args(layer, rows, training);
  args.bf16 = bf16_;
  gemm(dtype_, args);
}

// An activation, a dropout, or neither: then the result is the input.
void Program::forward_pointwise(PlacedLayer& layer, Index size, void* y) {
  const ElementwiseKernels& kernel = kernels().elementwise[int(dtype_)];
  layer.x = layer.input;
  layer.y = y;
  if (layer.activation >= 0) {
    const ActivationArgs args{layer.activation, layer.params, layer.input, nullptr, 1, y};
    run_chunks(size, kChunk, size, [&](Index begin, Index end) { kernel.activation(args, begin, end); });
  } else if (layer.mask.on) {
    const DropoutArgs args = mask_args(layer.mask, layer.input, y);
    run_chunks(size, kChunk, size, [&](Index begin, Index end) { kernel.dropout(args, begin, end); });
  } else {
    layer.result = layer.input;
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
  for (Index l = Index(layers_.size()) - 1; l > lowest_; --l) backward_layer(l, rows);
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
  PlacedLayer &layer = layers_[std::size_t(l)], &below = layers_[std::size_t(l - 1)];
  const Index size = rows * below.out;
  if (layer.kind == LayerKind::linear) {
    backward_linear(layer, below, rows);
  } else if (layer.kind == LayerKind::batch_norm) {
    backward_batch_norm(l, rows);
  } else if (layer.kind == LayerKind::pointwise) {
    if (below.mask.on || below.activation >= 0)
      run_chunks(size, kChunk, size, [&](Index begin, Index end) { begin_backward(l - 1, begin, end); });
  } else {
    const SoftmaxGradArgs args{layer.gradient, layer.result, below.gradient, layer.out};
    const RowKernels& row = kernels().rows[int(dtype_)];
    const auto kernel = layer.kind == LayerKind::softmax ? row.softmax_grad : row.log_softmax_grad;
    run_chunks(rows, row_chunk(layer.out), size, [&](Index begin, Index end) {
      kernel(args, begin, end);
      begin_backward(l - 1, begin * layer.out, end * layer.out);
    });
  }
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

void Program::backward_linear(const PlacedLayer& layer, const PlacedLayer& below, Index rows) {
  GemmArgs args = backward_args(layer, below, rows);
  args.bf16 = bf16_;
  gemm(dtype_, args);
}

// Runs ---------------------------------------------------------------------------------------------------

// The samples of a batch side by side: where they lie, or copied to `room`.
const void* Program::gather(const void* from, Index bytes, const Index* order, Index first, Index samples,
                            Buffer& room) {
  const char* const rows = static_cast<const char*>(from);
  if (!order) return rows + first * bytes;
  char* const to = room.reserve(samples * bytes);
  const Index together = std::max<Index>(kChunk * 4 / std::max<Index>(bytes, 1), 1);
  run_chunks(samples, together, samples * bytes / 8, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      // Rows lie anywhere. Into the second-level cache a core fetches more lines at once than into the first.
      const char* const ahead = rows + order[first + std::min(i + kRowsAhead, samples - 1)] * bytes;
      for (Index at = 0; at < std::min(bytes, kMostAhead); at += kLine) __builtin_prefetch(ahead + at, 0, 2);
      std::memcpy(to + i * bytes, rows + order[first + i] * bytes, std::size_t(bytes));
    }
  });
  return to;
}

ProgramStop Program::run(ProgramRun& run, const Ready& ready) {
  const std::uint64_t masks = std::uint64_t(set_masks(layers_, run.rates, run.seed, run.offset));
  set_norms(layers_, run.rates ? run.rates + dropouts_ : nullptr);
  wants_squares_ = run.squares != nullptr;
  if (wants_squares_) begin_squares();
  const Index target_bytes = run.repeat * (run.classes ? Index(sizeof(Index)) : out() * item_);
  for (Index step = 0; step < run.steps; ++step) {
    const Index first = run.begin + step * run.batch, samples = std::min(run.batch, run.end - first);
    const Index rows = samples * run.repeat;
    reserve(rows);
    const void* const x = gather(run.x, run.repeat * in() * item_, run.order, first, samples, x_room_);
    const void* const target = gather(run.target, target_bytes, run.order, first, samples, target_room_);
    if (run.classes) {
      const Index* const classes = static_cast<const Index*>(target);
      const Index bad = first_bad_class(classes, rows, out(), loss_.ignore_index);
      if (bad < rows) return {ProgramStop::bad_class, bad, double(classes[bad])};
    }
    forward(x, rows, true, nullptr);
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
  for (Index first = 0; first < rows; first += batch)
    forward(static_cast<const char*>(x) + first * in() * item_, std::min(batch, rows - first), false,
            static_cast<char*>(out) + first * this->out() * item_);
}

}  // namespace fastopt
