// What a program is made of, and what its steps pass to the kernels, whichever device they run on.
#pragma once

#include <vector>

#include "core/batch_norm.hpp"
#include "core/dispatch.hpp"
#include "formulas/names.hpp"

namespace fastopt {

// A weight or bias, and what becomes of its gradient.
struct ProgramParameter {
  void* data = nullptr;         // null: the layer has none
  void* grad = nullptr;         // receives the gradient; null: only the update sees it
  Index plan = -1, tensor = 0;  // its update: a tensor of one of the program's plans; negative: none
  Index use = 0;                // how many earlier layers have the same parameter, whose gradients add up

  bool trained() const { return grad || plan >= 0; }
};

enum class LayerKind : std::uint8_t { pointwise, linear, softmax, log_softmax, batch_norm };

// Of a batch normalisation; null: no running statistics.
struct ProgramNorm {
  double eps = 0.0, momentum = 0.0;  // negative momentum: all batches count alike
  void *running_mean = nullptr, *running_var = nullptr;
  Index* batches = nullptr;  // that were tracked
};

// A linear layer has an activation and dropout of its own; other kinds of layers are one thing at a time. A
// batch normalisation has a weight and a bias too, or neither.
struct ProgramLayer {
  LayerKind kind = LayerKind::pointwise;
  Index in = 0, out = 0;
  ProgramParameter weight, bias;
  int activation = -1;  // formula; negative: none
  double params[Names::kMax] = {};
  bool needs_x = false, needs_y = false;  // what the activation's gradient reads
  bool dropout = false;
  ProgramNorm norm{};
};

enum class LossKind : std::uint8_t { elementwise, cross_entropy, nll };
enum class Reduction : std::uint8_t { sum, mean, batchmean };

struct ProgramLoss {
  LossKind kind = LossKind::elementwise;
  Reduction reduction = Reduction::mean;
  int formula = 0;
  double params[Names::kMax] = {};
  bool probabilities = false;          // the input must lie in [0, 1]
  const void* class_weight = nullptr;  // null, or a factor for each class
  Index ignore_index = 0;
  double label_smoothing = 0.0;
};

// What a run steps over: samples of `repeat` rows, [begin, end) of them in batches.
struct ProgramRun {
  const void* x;
  const void* target;  // with `classes` an Index for each row, else as wide as the last layer's output
  bool classes;
  Index repeat;
  const Index* order;  // of the samples; null: as they lie
  Index begin, end, batch, steps;
  const void *weight, *param;  // of the loss: null, or a number for each element of a batch's output
  bool gather_weight;          // weight has one for each element of all samples' targets, and goes with them
  const double* rates;         // of each dropout its probability, 0: off; of each batch normalisation
                               // whether it trains
  std::uint64_t seed, offset;  // of the first dropout mask
  const double* coefs;         // of all steps
  double max_norm;             // of all gradients together; infinite: none
  double* losses;              // of each step
  double* squares;             // null, or receives the sum of all weights' squares before each step
  double norm = 0.0;           // receives that of the last step's gradients, where there is a max_norm
};

// Where a run ended before its last step, with everything as that step found it.
struct ProgramStop {
  enum Reason : std::uint8_t { none, bad_class, no_probability } reason = none;
  Index at = 0;  // element of the batch's target or output
  double value = 0.0;
};

// A dropout in the step at work.
struct ProgramMask {
  bool on = false;
  std::uint32_t last_kept = 0;
  double scale = 1.0;
  std::uint64_t seed = 0, offset = 0;
};

// A layer with its room, and with what the step at work has left in it.
struct PlacedLayer : ProgramLayer {
  char *output = nullptr, *gradient = nullptr;         // gradient: by the result of the layer's operation
  char *kept_input = nullptr, *kept_output = nullptr;  // of a linear layer's activation
  // In the step at work: what comes in and out, and input and output of the activation.
  const void *input = nullptr, *result = nullptr, *x = nullptr, *y = nullptr;
  GemmArgs product{};  // of a linear layer, forward
  ProgramMask mask{};
  // Of a batch normalisation: rows of numbers, whether those of the batch are used, and tracked.
  BatchSaved saved{};
  void *center = nullptr, *slope = nullptr;
  bool of_batch = false, tracks = false;
  Index first_row = 0;         // of its weight, among the rows of all weights
  bool squares_known = false;  // of those rows
  // Its weight's gradient: computed apart from updates and where, or in tasks that have parts of rows.
  bool apart = false, cut_columns = false;
  Zeros zeros = Zeros::none;  // of the product that gives it, in the first batch that its tasks were cut for
  Index lists_at = 0;
  char* lists = nullptr;  // of that product, for all its tasks
  Index gradient_at = 0;
  char* stored_gradient = nullptr;
};

// The lowest layer with a trained parameter; their number where there is none.
Index lowest_trained(const std::vector<PlacedLayer>& layers);
// Places the layers' arrays for so many rows from `base` on, gradients for layer `lowest` and those above.
// Returns the bytes they take, also where base is null.
Index place_layers(std::vector<PlacedLayer>& layers, Index lowest, Index item, Index rows, char* base);
// Sets the masks of a run's first step, each with the rate of its dropout; returns how many are on, which is
// by how much the offset grows with each step.
Index set_masks(std::vector<PlacedLayer>& layers, const double* rates, std::uint64_t seed,
                std::uint64_t offset);

// How batch normalisations work in the step at work; modes: of each whether it trains, null: none does.
void set_norms(std::vector<PlacedLayer>& layers, const double* modes);

// The kernels' arguments in a step of so many rows: forward also sets the layer's result.
DropoutArgs mask_args(const ProgramMask& mask, const void* x, void* y);
GemmArgs forward_args(PlacedLayer& layer, Index rows, bool training);
GemmArgs backward_args(const PlacedLayer& layer, const PlacedLayer& below, Index rows);
GemmArgs weight_args(const PlacedLayer& layer, Index rows);
BatchNormArgs norm_args(const PlacedLayer& layer);
// dx: null where it is not wanted.
BatchNormGradArgs norm_grad_args(const PlacedLayer& layer, void* dx);
// All null where nothing is to be summed.
BatchGradients norm_gradients(const PlacedLayer& layer, bool dx);
LossArgs loss_args(const ProgramLoss& loss, const PlacedLayer& last, const void* target, const void* weight,
                   const void* param, double divisor);
CrossEntropyArgs class_loss_args(const ProgramLoss& loss, const PlacedLayer& last, bool classes,
                                 const void* target, double divisor);

}  // namespace fastopt
