// A training step as a list of kernel calls over buffers that are laid out once (fastopt.compile): forward,
// loss, backward, and the optimizer's update, which takes each piece of a gradient while it is in cache.
#pragma once

#include <mutex>
#include <vector>

#include "core/buffer.hpp"
#include "core/dispatch.hpp"
#include "core/plan.hpp"
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

enum class LayerKind : std::uint8_t { pointwise, linear, softmax, log_softmax };

// A linear layer has an activation and dropout of its own; other kinds of layers are one thing at a time.
struct ProgramLayer {
  LayerKind kind = LayerKind::pointwise;
  Index in = 0, out = 0;
  ProgramParameter weight, bias;
  int activation = -1;  // formula; negative: none
  double params[Names::kMax] = {};
  bool needs_x = false, needs_y = false;  // what the activation's gradient reads
  bool dropout = false;
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

// An optimizer plan, and its part of a step's coefficients: `rows` sets of `width` numbers from `first` on.
struct ProgramPlan {
  StepPlan* plan;
  Index first, rows, width;
  std::vector<std::int32_t> sets;    // of each tensor; empty: all use the first
  std::vector<const void*> grads{};  // of each tensor; null where the update is fused or there is none
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
  const double* rates;         // of each dropout: its probability; 0: off
  std::uint64_t seed, offset;  // of the first dropout mask
  const double* coefs;         // of all steps
  double max_norm;             // of all gradients together; infinite: none
  double* losses;              // of each step
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

class Program {
 public:
  Program(DType dtype, bool bf16, std::vector<ProgramLayer> layers, const ProgramLoss& loss,
          std::vector<ProgramPlan> plans);

  // Makes room for batches of so many rows.
  void reserve(Index rows);
  ProgramStop run(ProgramRun& run);
  // The model's output in evaluation mode.
  void predict(const void* x, Index rows, Index batch, void* out);

  DType dtype() const { return dtype_; }
  Index in() const { return layers_.front().in; }
  Index out() const { return layers_.back().out; }
  Index dropouts() const { return dropouts_; }
  Index coefs_width() const { return coefs_width_; }
  const ProgramLoss& loss() const { return loss_; }
  Index steps() const { return steps_; }  // done by all runs

 private:
  struct Layer : ProgramLayer {
    char *output = nullptr, *gradient = nullptr;         // gradient: by the result of the layer's operation
    char *kept_input = nullptr, *kept_output = nullptr;  // of a linear layer's activation
    // In the step at work: what comes in and out, and input and output of the activation.
    const void *input = nullptr, *result = nullptr, *x = nullptr, *y = nullptr;
    ProgramMask mask{};
  };
  struct Task {  // rows and columns of a layer's weight, or columns of its bias
    Index layer;
    bool bias;
    Index begin_row, end_row, begin_col, end_col;
  };

  void set_masks(const ProgramRun& run, Index step);
  void forward(const void* x, Index rows, bool training, void* out);
  void forward_linear(Layer& layer, Index rows, bool training);
  void forward_pointwise(Layer& layer, Index size, void* y);
  ProgramStop require_probabilities(Index size) const;
  double evaluate(const ProgramRun& run, const void* target, Index rows, Index samples);
  void begin_backward(Index l, Index begin, Index end);
  void backward(Index rows);
  void backward_linear(const Layer& layer, const Layer& below, Index rows);
  void cut_tasks(bool deep);
  void update_weights(Index rows, const double* coefs);
  void run_weight_task(const Task& task, Index rows, const double* coefs);
  void run_bias_task(const Task& task, Index rows, const double* coefs);
  void step_plans(ProgramRun& run, const double* coefs);
  const double* row_of(const ProgramParameter& p, const double* coefs) const;
  static const void* gather(const void* from, Index bytes, const Index* order, Index first, Index samples,
                            Buffer& room);

  DType dtype_;
  bool bf16_;
  Index item_;
  std::vector<Layer> layers_;
  ProgramLoss loss_;
  std::vector<ProgramPlan> plans_;
  Index dropouts_ = 0, coefs_width_ = 0, capacity_ = 0, steps_ = 0;
  Index lowest_ = 0;    // layer with a trained parameter
  Index uses_ = 0;      // of the parameter that most layers share
  bool fused_ = false;  // some parameter is updated where its gradient is
  std::vector<Task> tasks_;
  std::vector<Index> task_ends_;  // of the first, second, ... uses
  int tasks_threads_ = 0;         // what the tasks were cut for
  bool tasks_deep_ = false;
  const KernelTable* tasks_table_ = nullptr;
  Buffer memory_, x_room_, target_room_;
  std::vector<double> parts_, scaled_;
  std::vector<std::unique_lock<std::mutex>> locks_;  // of the plans, while pieces are updated
};

}  // namespace fastopt
