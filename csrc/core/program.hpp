// A training step as a list of kernel calls over buffers that are laid out once (fastopt.compile): forward,
// loss, backward, and the optimizer's update, which takes each piece of a gradient while it is in cache.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "core/buffer.hpp"
#include "core/plan.hpp"
#include "core/program_parts.hpp"
#include "core/strips.hpp"

namespace fastopt {

// An optimizer plan, and its part of a step's coefficients: `rows` sets of `width` numbers from `first` on.
struct ProgramPlan {
  StepPlan* plan;
  Index first, rows, width;
  std::vector<std::int32_t> sets;    // of each tensor; empty: all use the first
  std::vector<const void*> grads{};  // of each tensor; null where the update is fused or there is none
};

class Program {
 public:
  Program(DType dtype, bool bf16, std::vector<ProgramLayer> layers, const ProgramLoss& loss,
          std::vector<ProgramPlan> plans);

  // Makes room for batches of so many rows.
  void reserve(Index rows);
  // Called with a layer's number when its gradients are stored, from the last layer on; not where a parameter
  // is used twice or an update is fused.
  using Ready = std::function<void(Index)>;
  ProgramStop run(ProgramRun& run, const Ready& ready = {});
  // The model's output in evaluation mode.
  void predict(const void* x, Index rows, Index batch, void* out);

  DType dtype() const { return dtype_; }
  Index in() const { return layers_.front().in; }
  Index out() const { return layers_.back().out; }
  Index dropouts() const { return dropouts_; }
  Index coefs_width() const { return coefs_width_; }
  const ProgramLoss& loss() const { return loss_; }
  Index steps() const { return steps_; }                   // done by all runs
  Index strip_shares() const { return strips_.shares(); }  // of the last run that had strips

 private:
  struct Task {  // rows and columns of a layer's weight, or columns of its bias
    Index layer;
    bool bias;
    Index begin_row, end_row, begin_col, end_col;
    Index share = -1;  // of the first layer's strips, where it is in these
  };
  struct Share {
    Index rows, columns;
    bool by_columns;  // tasks of few columns and many rows
  };

  struct Batch {
    const char* from;    // all samples
    const Index* order;  // those of the batch; null: the first
    Index samples;

    const char* at(Index i, Index bytes) const { return from + (order ? order[i] : i) * bytes; }
  };
  using Fetch = std::function<void(Index begin, Index end)>;
  // Each takes so many rows through this layer and all that follow; beyond the last layer: there are none.
  struct RowTasks {
    Index layer, rows;
  };
  RowTasks row_tasks(Index rows) const;
  void begin_forward(const void* x, Index rows, bool training, void* out);
  void forward(Index first, Index rows, void* out, const Fetch& fetch = {});
  void forward_rows(const PlacedLayer& layer, Index begin, Index end) const;
  void forward_batch_norm(PlacedLayer& layer, Index rows);
  ProgramStop require_probabilities(Index size) const;
  double evaluate(const ProgramRun& run, const void* target, const void* weight, Index rows, Index samples);
  void begin_backward(Index l, Index begin, Index end);
  void backward(Index rows);
  void backward_telling(Index rows, const Ready& ready);
  void backward_layer(Index l, Index rows);
  void backward_rows(Index l, Index rows, Index begin, Index end);
  GemmArgs backward_product(Index l, Index rows) const;
  void backward_batch_norm(Index l, Index rows);
  void sum_batch_norm(const PlacedLayer& layer, Index rows, bool dx);
  void track_batches();
  void place_norm_gradients(std::vector<ProgramLayer>& layers);
  Share share_of(const PlacedLayer& layer, Index batch, int threads) const;
  void cut_tasks(Index batch);
  void deal_tasks(Index begin, int threads);
  void make_lists(const PlacedLayer& layer, Index rows, bool parallel) const;
  void add_row_squares(const PlacedLayer& layer, Index begin_row, Index end_row);
  void begin_squares();
  double weight_squares();
  bool tasks_square(const PlacedLayer& layer) const;
  bool begin_weights(Index rows);
  void run_tasks(Index begin, Index end, Index rows, bool parallel, const double* coefs);
  void end_weights();
  void lock_plans();
  void update_weights(Index rows, const double* coefs);
  void run_weight_task(const Task& task, Index rows, const double* coefs);
  void run_update_task(const Task& task, const double* coefs);
  void run_bias_task(const Task& task, Index rows, const double* coefs);
  bool use_strips(const ProgramRun& run, Index step, const Batch& batch);
  bool may_use_strips(Index rows) const;
  bool finds_zeros(const Batch& batch);
  void take_strips(Index rows);
  void give_back_strips();
  void forward_strips(const Batch& batch);
  void run_strip_task(Index share, Index rows, const double* coefs);
  void step_plans(ProgramRun& run, const double* coefs);
  const double* row_of(const ProgramParameter& p, const double* coefs) const;
  static void copy_samples(const Batch& batch, Index bytes, Index begin, Index end, char* to);
  static void copy_parts(const Batch& batch, Index bytes, Index first, Index last, Index begin, Index end,
                         char* to, Index row);
  static const void* gather(const void* from, Index bytes, const Index* order, Index first, Index samples,
                            Buffer& room);

  DType dtype_;
  bool bf16_;
  Index item_;
  std::vector<PlacedLayer> layers_;
  ProgramLoss loss_;
  std::vector<ProgramPlan> plans_;
  Index dropouts_ = 0, coefs_width_ = 0, capacity_ = 0, steps_ = 0;
  Index lowest_ = 0;    // layer with a trained parameter
  Index uses_ = 0;      // of the parameter that most layers share
  bool fused_ = false;  // some parameter is updated where its gradient is
  std::vector<Task> tasks_;
  std::vector<Index> task_ends_;  // of the first, second, ... uses
  int tasks_threads_ = 0;         // what the tasks were cut for
  Index tasks_batch_ = 0;
  std::vector<Task> updates_;  // of stored gradients, after all tasks
  bool wants_squares_ = false;
  Strips strips_;           // of the first layer's weight, while a run takes many steps
  Index tasks_shares_ = 0;  // of them, that the tasks were cut for; 0: the weight's are rows and columns
  std::vector<double> row_squares_;  // of the rows of all weights
  const KernelTable* tasks_table_ = nullptr;
  Buffer norm_gradients_;  // of batch normalisations' parameters
  Buffer memory_, gradient_room_, list_room_, x_room_, target_room_, weight_room_;
  std::vector<double> parts_, scaled_;
  std::vector<std::unique_lock<std::mutex>> locks_;  // of the plans, while pieces are updated
};

}  // namespace fastopt
