// The kernels of one step, and of the model's output.
#include "cuda/program.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

namespace fastopt {
namespace {

constexpr Index kAlign = 256;  // of arrays in device memory

Index round_up(Index n, Index unit) { return (n + unit - 1) / unit * unit; }

bool graphs_wanted() {
  const char* const value = std::getenv("FASTOPT_CUDA_GRAPH");
  return !value || std::strcmp(value, "0") != 0;
}

}  // namespace

// Layout -------------------------------------------------------------------------------------------------

DeviceProgram::DeviceProgram(DType dtype, Precision precision, std::vector<ProgramLayer> layers,
                             const ProgramLoss& loss, const std::vector<DeviceProgramPlan>& plans)
    : dtype_(dtype),
      precision_(precision),
      item_(item_bytes(dtype)),
      loss_(loss),
      use_graphs_(graphs_wanted()) {
  find_fusable(layers, plans);
  place_gradients(layers);
  for (const ProgramLayer& layer : layers) {
    dropouts_ += layer.dropout;
    batch_norms_ += layer.kind == LayerKind::batch_norm;
    layers_.push_back({layer});
  }
  lowest_ = lowest_trained(layers_);
  for (const DeviceProgramPlan& plan : plans) coefs_width_ += plan.rows * plan.width;
  place_plans(plans);
  const Index numbers = numbers_width() + Index(plans.size());
  state_ = device_memory(Index(sizeof(Progress)) + numbers * Index(sizeof(double)));
  norms_ = coefs_now() + numbers_width();
}

// Numbers the weights whose gradient nobody else wants and whose update a product can be.
void DeviceProgram::find_fusable(const std::vector<ProgramLayer>& layers,
                                 const std::vector<DeviceProgramPlan>& plans) {
  std::map<const void*, Index> uses;
  for (const ProgramLayer& layer : layers)
    for (const ProgramParameter* p : {&layer.weight, &layer.bias}) ++uses[p->data];
  for (const ProgramLayer& layer : layers) {
    const ProgramParameter& weight = layer.weight;
    fused_.push_back(-1);
    if (layer.kind != LayerKind::linear || weight.plan < 0 || weight.grad || uses[weight.data] > 1) continue;
    const DeviceProgramPlan& plan = plans[std::size_t(weight.plan)];
    if (!plan.plan->is_linear(weight.tensor)) continue;
    fused_.back() = Index(fused_rows_.size());
    const Index set = plan.sets.empty() ? 0 : plan.sets[std::size_t(weight.tensor)];
    fused_rows_.push_back(plan.first + set * plan.width);
  }
}

// Gives each trained parameter an array for its gradient. `use` becomes the number of layers above that have
// the same parameter: their gradients are there first.
void DeviceProgram::place_gradients(std::vector<ProgramLayer>& layers) {
  struct Shared {
    void* grad;
    Index offset, uses;
  };
  std::map<const void*, Shared> known;
  Index bytes = 0;
  const auto for_each_trained = [&](const auto& f) {
    for (std::size_t l = layers.size(); l-- > 0;)
      for (ProgramParameter* p : {&layers[l].weight, &layers[l].bias})
        if (p->trained()) {
          const bool matrix = p == &layers[l].weight && layers[l].kind == LayerKind::linear;
          f(*p, (matrix ? layers[l].in : 1) * layers[l].out);
        }
  };
  for_each_trained([&](ProgramParameter& p, Index n) {
    const auto [entry, is_new] = known.try_emplace(p.data, Shared{p.grad, bytes, 0});
    p.use = entry->second.uses++;
    if (is_new && !p.grad) bytes += round_up(n * item_, kAlign);
  });
  if (bytes > 0) gradients_ = device_memory(bytes);
  for_each_trained([&](ProgramParameter& p, Index) {
    const Shared& shared = known.at(p.data);
    p.grad = shared.grad ? shared.grad : static_cast<char*>(gradients_.get()) + shared.offset;
  });
}

// What the plans' kernels read, in device memory once and for all.
void DeviceProgram::place_plans(const std::vector<DeviceProgramPlan>& plans) {
  std::vector<const void*> grads;
  std::vector<std::int32_t> sets;
  for (const DeviceProgramPlan& plan : plans) {
    plans_.push_back({plan.plan, plan.first, plan.width, nullptr, nullptr, nullptr, false, false});
    grads.resize(grads.size() + std::size_t(plan.tensors), nullptr);
    sets.insert(sets.end(), plan.sets.begin(), plan.sets.end());
    sets.resize(grads.size());
  }
  if (grads.empty()) return;
  std::vector<const void*> others = grads;
  const Index grads_bytes = Index(grads.size() * sizeof(void*)),
              sets_bytes = Index(sets.size() * sizeof(sets[0]));
  tables_ = device_memory(2 * grads_bytes + sets_bytes);
  const auto grads_at = static_cast<const void**>(tables_.get()), others_at = grads_at + grads.size();
  const auto sets_at = reinterpret_cast<std::int32_t*>(others_at + others.size());
  Index begin = 0;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    plans_[i].grads = grads_at + begin;
    plans_[i].others = others_at + begin;
    if (!plans[i].sets.empty()) plans_[i].sets = sets_at + begin;
    for (std::size_t l = 0; l < layers_.size(); ++l)
      for (const ProgramParameter* p : {&layers_[l].weight, &layers_[l].bias}) {
        if (p->plan != Index(i)) continue;
        grads[std::size_t(begin + p->tensor)] = p->grad;
        plans_[i].any_grad = true;
        if (p == &layers_[l].weight && fused_[l] >= 0) continue;
        others[std::size_t(begin + p->tensor)] = p->grad;
        plans_[i].any_other = true;
      }
    begin += plans[i].tensors;
  }
  copy_to_device(grads_at, grads.data(), grads_bytes, nullptr);
  copy_to_device(others_at, others.data(), grads_bytes, nullptr);
  copy_to_device(sets_at, sets.data(), sets_bytes, nullptr);
  synchronize(nullptr);
}

void DeviceProgram::reserve(Index rows) {
  if (rows <= capacity_) return;
  recorded_.clear();
  memory_.reset();
  capacity_ = 0;
  // A row of classes is as wide as an Index.
  const Index x_bytes = round_up(rows * in() * item_, kAlign),
              target_bytes = round_up(rows * std::max(out() * item_, Index(sizeof(Index))), kAlign),
              weight_bytes = loss_.kind == LossKind::elementwise ? round_up(rows * out() * item_, kAlign) : 0;
  const Index bytes = place_layers(layers_, lowest_, item_, rows, nullptr);
  memory_ = device_memory(x_bytes + target_bytes + weight_bytes + std::max<Index>(bytes, kAlign));
  x_room_ = static_cast<char*>(memory_.get());
  target_room_ = x_room_ + x_bytes;
  weight_room_ = target_room_ + target_bytes;
  place_layers(layers_, lowest_, item_, rows, weight_room_ + weight_bytes);
  capacity_ = rows;
}

// Where each layer finds its input and leaves its result; what layers do nothing passes through them.
void DeviceProgram::connect(const void* x, bool training, void* out) {
  for (PlacedLayer& layer : layers_) {
    layer.input = x;
    layer.result = out && &layer == &layers_.back() ? out : layer.output;
    if (layer.kind == LayerKind::linear) forward_args(layer, 0, training);
    if (layer.kind == LayerKind::pointwise) {
      layer.x = layer.input;
      layer.y = layer.result;
      if (layer.activation < 0 && !layer.mask.on) layer.result = layer.input;
    }
    x = layer.result;
  }
}

// Makes room for what the kernels of one product or sum leave for each other.
void DeviceProgram::reserve_scratch(Index rows, bool training) {
  Index bytes = std::max(sum_scratch_bytes(rows * out()), sum_scratch_bytes(rows));
  const auto reserve_for = [&](const DeviceGemm& product) {
    bytes = std::max(bytes, gemm_scratch_bytes(dtype_, product));
  };
  for (Index l = 0; l < Index(layers_.size()); ++l) {
    PlacedLayer& layer = layers_[std::size_t(l)];
    if (layer.kind == LayerKind::batch_norm)
      bytes = std::max(bytes, batch_norm_scratch_bytes(rows, layer.out));
    if (layer.kind != LayerKind::linear) continue;
    reserve_for(forward_product(layer, rows, training));
    if (training && l > lowest_) reserve_for(backward_product(l, rows));
    if (training && layer.weight.trained()) reserve_for(weight_product(l, rows, false));
    if (training && layer.bias.trained()) bytes = std::max(bytes, column_sums_scratch_bytes(rows, layer.out));
  }
  if (bytes <= scratch_bytes_) return;
  recorded_.clear();
  scratch_.reset();
  scratch_bytes_ = 0;
  scratch_ = device_memory(bytes);
  clear_in_device(scratch_.get(), 64, nullptr);
  synchronize(nullptr);
  scratch_bytes_ = bytes;
}

// Products -----------------------------------------------------------------------------------------------

DeviceGemm DeviceProgram::forward_product(PlacedLayer& layer, Index rows, bool training) const {
  DeviceGemm args{forward_args(layer, rows, training)};
  args.precision = precision_;
  args.mask_offset = &progress()->mask_offset;
  return args;
}

// The product that gives the gradient by the result of layer l - 1, and that layer's bias its gradient.
DeviceGemm DeviceProgram::backward_product(Index l, Index rows) const {
  const PlacedLayer &layer = layers_[std::size_t(l)], &below = layers_[std::size_t(l - 1)];
  DeviceGemm args{backward_args(layer, below, rows)};
  args.precision = precision_;
  args.mask_offset = &progress()->mask_offset;
  if (has_sums_above(l - 1)) args.c_sums = below.bias.grad;
  return args;
}

// The product that gives a weight its gradient, or that updates it at once.
DeviceGemm DeviceProgram::weight_product(Index l, Index rows, bool fused) const {
  const PlacedLayer& layer = layers_[std::size_t(l)];
  DeviceGemm args{weight_args(layer, rows)};
  args.precision = precision_;
  if (const Index number = fused_[std::size_t(l)]; fused && number >= 0) {
    args.c = layer.weight.data;
    args.alpha_at = coefs_now() + coefs_width_ + 2 * number;
    args.beta_at = coefs_now() + coefs_width_ + 2 * number + 1;
  }
  if (layer.bias.trained() && layer.bias.use == 0 && !has_sums_above(l)) args.a_sums = layer.bias.grad;
  return args;
}

// Whether the product that gives a layer's gradient gives its bias's too. Where layers share the bias, sums
// have to be added.
bool DeviceProgram::has_sums_above(Index l) const {
  const ProgramParameter& bias = layers_[std::size_t(l)].bias;
  return layers_[std::size_t(l)].kind == LayerKind::linear && bias.trained() && bias.use == 0 &&
         l + 1 < Index(layers_.size()) && layers_[std::size_t(l + 1)].kind == LayerKind::linear;
}

// Forward ------------------------------------------------------------------------------------------------

// Makes everything ready for steps on such batches, so that queueing them allocates nothing.
void DeviceProgram::prepare(const Batch& batch) {
  masks_ = set_masks(layers_, batch.rates.data(), batch.seed, 0);
  set_norms(layers_, batch.rates.data() + dropouts_);
  connect(x_room_, true, nullptr);
  reserve_scratch(batch.rows(), true);
}

// One step on the batch that lies in the room.
void DeviceProgram::queue_step(const Batch& batch, CudaStream stream) {
  const Index rows = batch.rows(), top = Index(layers_.size()) - 1;
  queue_forward(rows, true, stream);
  const void* const output = loss_.probabilities ? layers_.back().result : nullptr;
  if (output) check_probabilities_on_device(dtype_, output, rows * out(), progress(), stream);
  queue_loss(batch, stream);
  if (lowest_ <= top) begin_backward(top, rows, stream);
  for (Index l = top; l >= lowest_; --l) {
    const bool norm = layers_[std::size_t(l)].kind == LayerKind::batch_norm;
    if (norm) queue_norm_sums(l, rows, stream);
    if (l > lowest_) queue_backward(l, rows, stream);  // first: the other may leave another weight
    if (!norm) queue_gradients(l, rows, batch.fused, stream);
  }
  queue_updates(batch, stream);
  advance_on_device({dtype_, output, coefs_now(), numbers_width(), batch.samples, masks_}, progress(),
                    stream);
}

void DeviceProgram::queue_forward(Index rows, bool training, CudaStream stream) {
  for (PlacedLayer& layer : layers_) {
    void* const y = const_cast<void*>(layer.result);
    if (layer.kind == LayerKind::linear)
      gemm_on_device(dtype_, forward_product(layer, rows, training), scratch_.get(), stream);
    else if (layer.kind == LayerKind::pointwise)
      queue_pointwise(layer, rows * layer.out, stream);
    else if (layer.kind == LayerKind::batch_norm)
      queue_batch_norm(layer, rows, stream);
    else
      softmax_on_device(dtype_, {layer.input, y, layer.out}, layer.kind == LayerKind::log_softmax, rows,
                        stream);
  }
}

// An activation, a dropout, or neither.
void DeviceProgram::queue_pointwise(const PlacedLayer& layer, Index size, CudaStream stream) const {
  void* const y = const_cast<void*>(layer.result);
  if (layer.activation >= 0)
    activation_on_device(dtype_, {layer.activation, layer.params, layer.input, nullptr, 1, y}, size, stream);
  else if (layer.mask.on)
    dropout_on_device(dtype_, mask_args(layer.mask, layer.input, y), size, &progress()->mask_offset, stream);
}

void DeviceProgram::queue_batch_norm(const PlacedLayer& layer, Index rows, CudaStream stream) const {
  const ProgramNorm& norm = layer.norm;
  if (layer.of_batch)
    batch_statistics_on_device(dtype_, layer.input, rows, layer.out, norm.eps, layer.saved, scratch_.get(),
                               stream);
  else
    running_rstd_on_device(dtype_, norm.running_var, layer.out, norm.eps, layer.saved.rstd, stream);
  normalize_on_device(dtype_, norm_args(layer), rows, stream);
}

// Loss and backward --------------------------------------------------------------------------------------

// The loss of the output, and its gradient by the result of the last layer's operation.
void DeviceProgram::queue_loss(const Batch& batch, CudaStream stream) const {
  const PlacedLayer& last = layers_.back();
  const Index rows = batch.rows(), size = rows * last.out;
  const bool by_element = loss_.kind == LossKind::elementwise, mean = loss_.reduction == Reduction::mean;
  DeviceSum sum{&progress()->loss};
  if (loss_.reduction == Reduction::batchmean) sum.divisor = double(batch.samples);
  if (mean && !batch.classes) sum.divisor = double(by_element ? size : rows);
  if (by_element) {
    const void* const weight = batch.gather_weight ? weight_room_ : batch.weight;
    const LossArgs args = loss_args(loss_, last, target_room_, weight, batch.param, sum.divisor);
    return loss_on_device(dtype_, args, size, sum, scratch_.get(), stream);
  }
  const CrossEntropyArgs args = class_loss_args(loss_, last, batch.classes, target_room_, sum.divisor);
  if (mean && batch.classes) {
    class_divisor_on_device(dtype_, args, rows, &progress()->divisor, scratch_.get(), stream);
    sum.divisor_at = &progress()->divisor;
  }
  cross_entropy_on_device(dtype_, args, loss_.kind == LossKind::nll, rows, sum, scratch_.get(), stream);
}

// From the gradient by what a layer returns to that by the result of its operation, in place: through dropout
// and activation.
void DeviceProgram::begin_backward(Index l, Index rows, CudaStream stream) const {
  const PlacedLayer& layer = layers_[std::size_t(l)];
  void* const g = layer.gradient;
  const Index size = rows * layer.out;
  if (layer.mask.on)
    dropout_on_device(dtype_, mask_args(layer.mask, g, g), size, &progress()->mask_offset, stream);
  if (layer.activation >= 0)
    activation_grad_on_device(dtype_, {layer.activation, layer.params, g, layer.x, layer.y, g}, size, stream);
}

// The gradient by the result of the operation of layer l - 1.
void DeviceProgram::queue_backward(Index l, Index rows, CudaStream stream) const {
  const PlacedLayer &layer = layers_[std::size_t(l)], &below = layers_[std::size_t(l - 1)];
  if (layer.kind == LayerKind::linear)
    return gemm_on_device(dtype_, backward_product(l, rows), scratch_.get(), stream);
  if (layer.kind == LayerKind::batch_norm) {
    const BatchNormGradArgs args = norm_grad_args(layer, below.gradient);
    layer.of_batch ? normalize_grad_on_device(dtype_, args, rows, stream)
                   : normalize_on_device(dtype_, constant_grad_args(args), rows, stream);
  } else if (layer.kind != LayerKind::pointwise) {
    const SoftmaxGradArgs args{layer.gradient, layer.result, below.gradient, layer.out};
    softmax_grad_on_device(dtype_, args, layer.kind == LayerKind::log_softmax, rows, stream);
  }
  begin_backward(l - 1, rows, stream);
}

// The gradients of a batch normalisation's weight and bias, and the sums that its input's needs.
void DeviceProgram::queue_norm_sums(Index l, Index rows, CudaStream stream) const {
  const PlacedLayer& layer = layers_[std::size_t(l)];
  const BatchGradients wanted = norm_gradients(layer, l > lowest_);
  if (!wanted.weight && !wanted.bias && !wanted.center) return;
  const BatchSaved saved{const_cast<void*>(norm_args(layer).mean), layer.saved.rstd, nullptr};
  batch_norm_sums_on_device(dtype_, layer.gradient, layer.input, rows, layer.out, saved, wanted,
                            scratch_.get(), stream);
}

// The gradients of a layer's parameters, from that by the result of its operation.
void DeviceProgram::queue_gradients(Index l, Index rows, bool fused, CudaStream stream) const {
  const PlacedLayer& layer = layers_[std::size_t(l)];
  const ProgramParameter& bias = layer.bias;
  bool has_bias = !bias.trained() || has_sums_above(l);
  if (layer.weight.trained()) {
    const DeviceGemm args = weight_product(l, rows, fused);
    gemm_on_device(dtype_, args, scratch_.get(), stream);
    has_bias = has_bias || args.a_sums;
  }
  if (!has_bias)
    column_sums_on_device(dtype_, layer.gradient, rows, layer.out, bias.grad, bias.use > 0, scratch_.get(),
                          stream);
}

// The updates of all plans that no product has made, with the gradients clipped together, and those of
// running statistics. A run that has stopped changes nothing.
void DeviceProgram::queue_updates(const Batch& batch, CudaStream stream) const {
  const bool clipped = !std::isinf(batch.max_norm), one = plans_.size() == 1;
  for (std::size_t i = 0; clipped && i < plans_.size(); ++i) {
    DeviceNorm norm{plans_[i].grads, batch.max_norm, one ? &progress()->norm : norms_ + i};
    if (one) norm.grad_scale = &progress()->grad_scale;
    plans_[i].plan->norm(Monoid::sum_squares, norm, stream);
  }
  if (clipped && !one)
    join_norms_on_device(norms_, Index(plans_.size()), batch.max_norm, &progress()->norm,
                         &progress()->grad_scale, stream);
  for (const Plan& plan : plans_) {
    if (batch.fused ? !plan.any_other : !plan.any_grad) continue;
    DeviceStep step{batch.fused ? plan.others : plan.grads, coefs_now() + plan.first, plan.width, plan.sets};
    if (clipped) step.grad_scale = &progress()->grad_scale;
    step.found_inf = &progress()->stopped;
    plan.plan->step(step, stream);
  }
  for (const PlacedLayer& layer : layers_)
    if (layer.tracks)
      track_on_device(dtype_, layer.saved, layer.out, layer.norm.momentum, layer.norm.batches,
                      &progress()->stopped, layer.norm.running_mean, layer.norm.running_var, stream);
}

}  // namespace fastopt
