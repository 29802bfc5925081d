// Program for arrays in device memory: a step is a sequence of kernels on a stream that waits for nothing, is
// captured as a graph once for each kind of batch, and then replayed.
#pragma once

#include <list>
#include <memory>
#include <vector>

#include "core/program_parts.hpp"
#include "cuda/gemm.hpp"
#include "cuda/kernels.hpp"
#include "cuda/progress.hpp"
#include "cuda/queue.hpp"

namespace fastopt {

// ProgramPlan with a plan of the device, which nothing else may use while a run is at work.
struct DeviceProgramPlan {
  const DevicePlan* plan;
  Index tensors;  // that the plan has
  Index first, rows, width;
  std::vector<std::int32_t> sets;
};

// One thread at a time, on any streams: a call is queued behind the last one.
class DeviceProgram {
 public:
  // The layers' arrays and the loss's class weights are in device memory.
  DeviceProgram(DType dtype, Precision precision, std::vector<ProgramLayer> layers, const ProgramLoss& loss,
                const std::vector<DeviceProgramPlan>& plans);

  // Makes room for batches of so many rows.
  void reserve(Index rows);
  // Returns when all steps are done. x, target, weight and param of the run are in device memory, the rest is
  // the host's. Classes are checked before the first step, all that the run will see: `at` of the stop is
  // then an element of run.target.
  ProgramStop run(ProgramRun& run, CudaStream stream);
  // The model's output in evaluation mode, queued on the stream.
  void predict(const void* x, Index rows, Index batch, void* out, CudaStream stream);
  // Waits until it is known whether one of n classes is neither ignored nor a column of the output: the first
  // such stops.
  ProgramStop check_classes(const Index* target, Index n, CudaStream stream);

  DType dtype() const { return dtype_; }
  Index in() const { return layers_.front().in; }
  Index out() const { return layers_.back().out; }
  Index dropouts() const { return dropouts_; }
  Index coefs_width() const { return coefs_width_; }
  const ProgramLoss& loss() const { return loss_; }
  Index steps() const { return steps_; }  // done by all runs

  // Whether steps are captured: where not, each launches its kernels one by one. FASTOPT_CUDA_GRAPH=0 turns
  // it off.
  void use_graphs(bool on) { use_graphs_ = on; }

  // Whether plain gradient descent updates a weight in the product that would be its gradient, where that may
  // be: C = W, alpha = -lr, beta what is left of W.
  void fuse_updates(bool on) { fuses_ = on; }

 private:
  struct Plan {
    const DevicePlan* plan;
    Index first, width;
    const void *const *grads, *const *others;  // others: without those that products may update by
    const std::int32_t* sets;
    bool any_grad, any_other;
  };
  // All that the kernels of a step depend on, and where they find the data: null where it is in the room.
  struct Batch {
    const void *x, *target;
    bool classes, ordered;
    Index samples, repeat;
    const void *weight, *param;
    bool gather_weight;
    std::vector<double> rates;
    std::uint64_t seed;
    double max_norm;
    bool fused;  // products update weights
    bool operator==(const Batch&) const = default;
    Index rows() const { return samples * repeat; }
  };
  struct Recorded {
    Batch batch;
    std::unique_ptr<Graph> one, many;  // step or steps; null: not yet
  };

  // program.cu: one step.
  void find_fusable(const std::vector<ProgramLayer>& layers, const std::vector<DeviceProgramPlan>& plans);
  void place_gradients(std::vector<ProgramLayer>& layers);
  void place_plans(const std::vector<DeviceProgramPlan>& plans);
  void connect(const void* x, bool training, void* out);
  void reserve_scratch(Index rows, bool training);
  DeviceGemm forward_product(PlacedLayer& layer, Index rows, bool training) const;
  DeviceGemm backward_product(Index l, Index rows) const;
  DeviceGemm weight_product(Index l, Index rows, bool fused) const;
  bool has_sums_above(Index l) const;
  void queue_step(const Batch& batch, CudaStream stream);
  void prepare(const Batch& batch);
  void queue_forward(Index rows, bool training, CudaStream stream);
  void queue_pointwise(const PlacedLayer& layer, Index size, CudaStream stream) const;
  void queue_batch_norm(const PlacedLayer& layer, Index rows, CudaStream stream) const;
  void queue_norm_sums(Index l, Index rows, CudaStream stream) const;
  void queue_loss(const Batch& batch, CudaStream stream) const;
  void begin_backward(Index l, Index rows, CudaStream stream) const;
  void queue_backward(Index l, Index rows, CudaStream stream) const;
  void queue_gradients(Index l, Index rows, bool fused, CudaStream stream) const;
  void queue_updates(const Batch& batch, CudaStream stream) const;

  // program_run.cu: many steps.
  Index target_bytes(const Batch& batch) const;
  void gather(const Batch& batch, const void* x, const void* target, CudaStream stream);
  CudaStream begin(CudaStream given);
  void end(CudaStream stream, CudaStream given);
  void upload(const ProgramRun& run, Index first, CudaStream stream);
  void stage_coefs(const double* from, void* to) const;
  void queue_class_check(const ProgramRun& run, Index samples, CudaStream stream);
  bool can_fuse(const ProgramRun& run, CudaStream stream);
  void replay(const Batch& batch, Index steps, CudaStream stream);
  ProgramStop download(ProgramRun& run, CudaStream stream);
  static ProgramStop stop_of(const Progress& reached, const Index* classes, CudaStream stream);

  // A step's numbers on the device: the coefficients of all plans, then alpha and beta of each product that
  // may update a weight, in the arrays' dtype, each in the room of a double.
  double* coefs_now() const { return reinterpret_cast<double*>(progress() + 1); }
  Index numbers_width() const { return coefs_width_ + 2 * Index(fused_rows_.size()); }
  Progress* progress() const { return static_cast<Progress*>(state_.get()); }

  DType dtype_;
  Precision precision_;
  Index item_;
  std::vector<PlacedLayer> layers_;
  ProgramLoss loss_;
  std::vector<Plan> plans_;
  Index dropouts_ = 0, batch_norms_ = 0, coefs_width_ = 0, steps_ = 0;
  std::vector<Index> fused_;       // of each layer: its product's number, or -1 where it updates no weight
  std::vector<Index> fused_rows_;  // of each such product: where its coefficients begin
  Index lowest_ = 0;               // layer with a trained parameter
  Index masks_ = 0;                // of a step

  DeviceArray<void> gradients_, tables_;  // tables: addresses of gradients, and sets, of the plans
  DeviceArray<void> state_;               // the progress, the step's coefficients, norms of the plans
  double* norms_ = nullptr;
  DeviceArray<void> memory_, scratch_;
  char *x_room_ = nullptr, *target_room_ = nullptr, *weight_room_ = nullptr;
  Index capacity_ = 0, scratch_bytes_ = 0;
  DeviceArray<void> coefs_, losses_, order_;  // of a run
  Index coefs_room_ = 0, losses_room_ = 0, order_room_ = 0;

  bool use_graphs_, fuses_ = true;
  std::list<Recorded> recorded_;  // the last used first
  std::unique_ptr<OwnStream> own_stream_;
  Event given_, done_, uploaded_;
  Pinned staged_, results_;
};

}  // namespace fastopt
