#include "core/program_parts.hpp"

#include "core/chunks.hpp"
#include "core/dropout.hpp"

namespace fastopt {
namespace {

void drop(const ProgramMask& mask, Epilogue& e) {
  e.dropout = mask.on;
  e.seed = mask.seed;
  e.offset = mask.offset;
  e.last_kept = mask.last_kept;
  e.kept_scale = mask.scale;
}

}  // namespace

Index lowest_trained(const std::vector<PlacedLayer>& layers) {
  Index lowest = 0;
  for (const PlacedLayer& layer : layers) {
    if (layer.weight.trained() || layer.bias.trained()) break;
    ++lowest;
  }
  return lowest;
}

Index place_layers(std::vector<PlacedLayer>& layers, Index lowest, Index item, Index rows, char* base) {
  Index bytes = 0;
  const auto take_items = [&](Index items) {
    char* const place = base ? base + bytes : nullptr;
    bytes += round_up(items * item, 64);
    return place;
  };
  const auto take = [&](Index columns) { return take_items(rows * columns); };
  for (PlacedLayer& layer : layers) {
    layer.output = take(layer.out);
    if (layer.kind == LayerKind::batch_norm) {
      layer.saved = {take_items(layer.out), take_items(layer.out), take_items(layer.out)};
      layer.center = take_items(layer.out);
      layer.slope = take_items(layer.out);
    }
    if (layer.kind != LayerKind::linear) continue;
    if (layer.needs_x) layer.kept_input = take(layer.out);
    if (layer.needs_y && layer.dropout) layer.kept_output = take(layer.out);
  }
  char* gradient = nullptr;
  const Index top = Index(layers.size()) - 1;
  for (Index l = top; l >= lowest; --l) {
    PlacedLayer& layer = layers[std::size_t(l)];
    const LayerKind above = l < top ? layers[std::size_t(l + 1)].kind : LayerKind::linear;
    const bool shared = above == LayerKind::pointwise || above == LayerKind::batch_norm;
    layer.gradient = gradient = shared ? gradient : take(layer.out);
  }
  return bytes;
}

Index set_masks(std::vector<PlacedLayer>& layers, const double* rates, std::uint64_t seed,
                std::uint64_t offset) {
  Index active = 0, d = 0;
  for (PlacedLayer& layer : layers) {
    if (!layer.dropout) continue;
    const double rate = rates[d++];
    const Kept stays = kept(rate);
    layer.mask = {rate > 0.0, stays.last, stays.scale, seed, offset + std::uint64_t(active)};
    active += layer.mask.on;
  }
  return active;
}

void set_norms(std::vector<PlacedLayer>& layers, const double* modes) {
  for (PlacedLayer& layer : layers) {
    if (layer.kind != LayerKind::batch_norm) continue;
    const bool training = modes && *modes++ != 0.0;
    layer.of_batch = training || !layer.norm.running_mean;
    layer.tracks = training && layer.norm.running_mean;
  }
}

DropoutArgs mask_args(const ProgramMask& mask, const void* x, void* y) {
  return {x, y, mask.seed, mask.offset, mask.last_kept, mask.scale};
}

GemmArgs forward_args(PlacedLayer& layer, Index rows, bool training) {
  GemmArgs args{rows,
                layer.out,
                layer.in,
                {layer.input, layer.in, 1},
                {layer.weight.data, 1, layer.in},
                const_cast<void*>(layer.result),
                layer.out};
  Epilogue& e = args.epilogue;
  e.bias = layer.bias.data;
  e.activation = layer.activation;
  e.params = layer.params;
  drop(layer.mask, e);
  if (training) {
    e.kept_input = layer.kept_input;
    e.kept_output = layer.mask.on ? layer.kept_output : nullptr;
    layer.x = e.kept_input;
    layer.y = e.kept_output ? e.kept_output : layer.result;
  }
  return args;
}

GemmArgs backward_args(const PlacedLayer& layer, const PlacedLayer& below, Index rows) {
  GemmArgs args{
      rows,           layer.in, layer.out, {layer.gradient, layer.out, 1}, {layer.weight.data, layer.in, 1},
      below.gradient, layer.in};
  Epilogue& e = args.epilogue;
  drop(below.mask, e);
  e.gradient = below.activation;
  e.params = below.params;
  e.x = below.x;
  e.y = below.y;
  return args;
}

GemmArgs weight_args(const PlacedLayer& layer, Index rows) {
  const ProgramParameter& weight = layer.weight;
  GemmArgs args{layer.out,   layer.in, rows, {layer.gradient, 1, layer.out}, {layer.input, layer.in, 1},
                weight.grad, layer.in};
  args.beta = weight.use > 0 ? 1.0 : 0.0;
  return args;
}

BatchNormArgs norm_args(const PlacedLayer& layer) {
  return {layer.input,
          layer.out,
          layer.of_batch ? layer.saved.mean : layer.norm.running_mean,
          layer.saved.rstd,
          layer.weight.data,
          layer.bias.data,
          const_cast<void*>(layer.result)};
}

BatchNormGradArgs norm_grad_args(const PlacedLayer& layer, void* dx) {
  return {layer.gradient, layer.input, layer.out, norm_args(layer).mean, layer.saved.rstd, layer.weight.data,
          layer.center,   layer.slope, dx};
}

BatchGradients norm_gradients(const PlacedLayer& layer, bool dx) {
  const bool terms = dx && layer.of_batch;
  return {layer.weight.grad, layer.bias.grad, terms ? layer.center : nullptr, terms ? layer.slope : nullptr};
}

LossArgs loss_args(const ProgramLoss& loss, const PlacedLayer& last, const void* target, const void* weight,
                   const void* param, double divisor) {
  return {loss.formula, loss.params, last.result,   target,       weight,
          param,        nullptr,     last.gradient, 1.0 / divisor};
}

CrossEntropyArgs class_loss_args(const ProgramLoss& loss, const PlacedLayer& last, bool classes,
                                 const void* target, double divisor) {
  return {last.result,
          classes ? static_cast<const Index*>(target) : nullptr,
          classes ? nullptr : target,
          loss.class_weight,
          nullptr,
          last.gradient,
          last.out,
          loss.ignore_index,
          loss.label_smoothing,
          1.0 / divisor};
}

}  // namespace fastopt
