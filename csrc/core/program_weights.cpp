// The gradients of a program's weights: cut into tasks, each of which updates what it has while it is in
// cache.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>

#include "core/chunks.hpp"
#include "core/gemm.hpp"
#include "core/parallel.hpp"
#include "core/program.hpp"

namespace fastopt {
namespace {

constexpr Index kPieceBytes = Index(1) << 18;  // of a gradient that waits for its update: with p, m, v in L2
// A load that follows a store to the same place of another page waits for it: gradients are kept as far from
// their parameters' place as the optimizers keep their states.
constexpr Index kPage = 4096, kLine = 64, kApart = 384;
constexpr Index kBiasColumns = 512;           // of a task that sums a bias's gradient
constexpr Index kDeepBytes = Index(1) << 18;  // of X from which on reading it again and again counts
constexpr Index kDeepRows = 264;              // of a task then: a block of the gemm driver
constexpr Index kFewRows = 8;                 // of a register tile that is still a good one
// Rows of a task, a multiple of these, and tasks of a thread, where steps are left out; panels listed
// together.
constexpr Index kSparseRows = 16, kSparseTasks = 2, kPanelsTogether = 4;
// Bytes of factors below this are not worth waking a thread for; an element of an update counts as so many
// multiplications.
constexpr Index kSerialBytes = Index(1) << 22, kUpdateProducts = 16;

thread_local Buffer piece_room;

// Room for the gradient of parameters at p, in memory of kPage bytes more.
char* beside(const void* p, char* memory) {
  return memory + ((static_cast<const char*>(p) - kApart - memory) & (kPage - kLine));
}

}  // namespace

// Rows and columns of a task of a layer's weight. Its rows are updated as soon as it has their gradient; but
// where a batch outgrows the second-level cache, or rows are too long for a task that leaves out steps, tasks
// read their own columns of it only, and the gradient is kept for updates of whole rows.
Program::Share Program::share_of(const PlacedLayer& layer, Index batch, int threads) const {
  const GemmKernels& kernel = kernels().gemm[int(dtype_)];
  const Index room = kPieceBytes / item_;
  const Index most = std::max(room / std::max<Index>(layer.in, 1) / kernel.rows * kernel.rows, kernel.rows);
  const bool sparse = layer.zeros != Zeros::none, fits = most >= kSparseRows;
  // Equal shares: a share more than the others' would cost more than register tiles of fewer rows.
  const Index unit = sparse ? kSparseRows : kFewRows, tasks = sparse ? kSparseTasks : kTasksPerThread;
  const Index fair = round_up(pieces(layer.out, tasks * threads), unit);
  const Index limit = sparse && fits ? most / unit * unit : most;
  const Index rows = threads > 1 || sparse ? std::min(fair, limit) : limit;
  const bool deep = batch * layer.in * item_ > kDeepBytes && layer.out > 2 * rows;
  if (sparse ? fits : !deep)
    return {rows, std::max(room / rows / kernel.columns * kernel.columns, kernel.columns), false};
  return {std::min(round_up(layer.out, kernel.rows), kDeepRows),
          round_up(pieces(layer.in, kTasksPerThread * threads), kernel.columns), true};
}

// Orders the tasks from `begin` on so that each thread begins with its share of every layer's rows: of a
// layer whose product is cut between columns those that are in its own cache. Layers of few tasks go to the
// threads in turn.
void Program::deal_tasks(Index begin, int threads) {
  std::vector<std::pair<Index, Task>> dealt;
  Index single = 0;
  for (auto first = tasks_.begin() + begin; first != tasks_.end();) {
    const auto last = std::find_if(
        first, tasks_.end(), [&](const Task& t) { return t.layer != first->layer || t.bias != first->bias; });
    const Index n = last - first;
    for (Index i = 0; i < n; ++i)
      dealt.emplace_back(n < threads ? single++ % threads : i * threads / n, first[i]);
    first = last;
  }
  std::stable_sort(dealt.begin(), dealt.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::transform(dealt.begin(), dealt.end(), tasks_.begin() + begin, [](const auto& d) { return d.second; });
}

// One list of tasks for all layers, the first uses of parameters before the second.
void Program::cut_tasks(Index batch) {
  const int threads = num_threads();
  const Index shares = strips_.taken() ? strips_.shares() : 0;
  if (tasks_threads_ == threads && tasks_table_ == &kernels() && tasks_batch_ == batch &&
      tasks_shares_ == shares)
    return;
  tasks_threads_ = threads;
  tasks_shares_ = shares;
  tasks_batch_ = batch;
  tasks_table_ = &kernels();
  tasks_.clear();
  updates_.clear();
  task_ends_.clear();
  const GemmKernels& kernel = kernels().gemm[int(dtype_)];
  Index apart = 0, lists = 0;
  for (Index use = 0; use < uses_; ++use) {
    for (Index l = lowest_; l < Index(layers_.size()); ++l) {
      PlacedLayer& layer = layers_[std::size_t(l)];
      if (layer.kind != LayerKind::linear) continue;
      if (l == 0 && shares > 0) {
        layer.zeros = Zeros::none;
        layer.apart = layer.cut_columns = false;
        for (Index share = 0; share < shares; ++share) tasks_.push_back({l, false, 0, 0, 0, 0, share});
      } else if (layer.weight.trained() && layer.weight.use == use) {
        GemmArgs args = weight_args(layer, batch);
        args.bf16 = bf16_;
        args.zeros = layer.zeros = kernel.find_zeros(args);
        layer.lists_at = lists;
        lists += round_up(kernel.lists_bytes(args), kLine);
        const Share share = share_of(layer, batch, threads);
        layer.apart = !layer.weight.grad && share.by_columns;
        if (layer.apart) {
          layer.gradient_at = apart;
          apart += round_up(layer.in * layer.out * item_, kLine) + kPage;
          const Index together = std::max<Index>(kChunk / layer.in, 1);
          for (Index r = 0; r < layer.out; r += together)
            updates_.push_back({l, false, r, std::min(r + together, layer.out), 0, layer.in});
        }
        layer.cut_columns = !layer.apart && share.columns < layer.in;
        for (Index r = 0; r < layer.out; r += share.rows)
          for (Index c = 0; c < layer.in; c += share.columns)
            tasks_.push_back(
                {l, false, r, std::min(r + share.rows, layer.out), c, std::min(c + share.columns, layer.in)});
      }
      if (layer.bias.trained() && layer.bias.use == use)
        for (Index c = 0; c < layer.out; c += kBiasColumns)
          tasks_.push_back({l, true, 0, 1, c, std::min(c + kBiasColumns, layer.out)});
    }
    // backward_telling, which updates nothing, wants a layer's tasks side by side.
    if (fused_) deal_tasks(task_ends_.empty() ? 0 : task_ends_.back(), threads);
    task_ends_.push_back(Index(tasks_.size()));
  }
  char* const memory = apart ? gradient_room_.reserve(apart) : nullptr;
  char* const list_memory = lists ? list_room_.reserve(lists) : nullptr;
  for (PlacedLayer& layer : layers_) {
    layer.lists = layer.zeros == Zeros::none ? nullptr : list_memory + layer.lists_at;
    layer.stored_gradient = layer.apart ? beside(layer.weight.data, memory + layer.gradient_at) : nullptr;
  }
}

// The squares of some rows of a weight, block of inputs by block, as Strips has them.
void Program::add_row_squares(const PlacedLayer& layer, Index begin_row, Index end_row) {
  const ReduceKernel kernel = kernels().reduce[int(Monoid::sum_squares)].at[int(dtype_)];
  const Index depth = kernels().strips[int(dtype_)].depth(layer.in);
  const char* const data = static_cast<const char*>(layer.weight.data);
  for (Index r = begin_row; r < end_row; ++r) {
    double& sum = row_squares_[std::size_t(layer.first_row + r)] = 0.0;
    for (Index begin = 0; begin < layer.in; begin += depth)
      sum += kernel(data + (r * layer.in + begin) * item_, std::min(depth, layer.in - begin));
  }
}

void Program::begin_squares() {
  Index rows = 0;
  for (PlacedLayer& layer : layers_) {
    layer.squares_known = layer.kind != LayerKind::linear || layer.weight.use > 0;
    layer.first_row = rows;
    if (!layer.squares_known) rows += layer.out;
  }
  row_squares_.resize(std::size_t(rows));
}

// The sum of all weights' squares. Those that were updated piece by piece in the last step are known: their
// rows were in cache then. Added row by row, so that no bit depends on who did it.
double Program::weight_squares() {
  for (PlacedLayer& layer : layers_) {
    if (!layer.squares_known)
      run_chunks(layer.out, row_chunk(layer.in), layer.in * layer.out,
                 [&](Index begin, Index end) { add_row_squares(layer, begin, end); });
    layer.squares_known = true;
  }
  return std::accumulate(row_squares_.begin(), row_squares_.end(), 0.0);
}

// Whether the tasks of a weight leave its rows' squares.
bool Program::tasks_square(const PlacedLayer& layer) const {
  return wants_squares_ && layer.weight.use == 0 && !layer.weight.grad && !layer.cut_columns;
}

// Cuts the tasks, and lists what they leave out; tells whether they are worth several threads.
bool Program::begin_weights(Index rows) {
  cut_tasks(rows);
  Index bytes = 0;
  for (Index l = lowest_; l < Index(layers_.size()); ++l) {
    const PlacedLayer& layer = layers_[std::size_t(l)];
    if (layer.kind == LayerKind::linear && layer.weight.trained())
      bytes += (rows + kUpdateProducts) * layer.in * layer.out * item_;
  }
  const bool parallel = bytes >= kSerialBytes;
  for (const PlacedLayer& layer : layers_)
    if (layer.lists) make_lists(layer, rows, parallel);
  return parallel;
}

void Program::make_lists(const PlacedLayer& layer, Index rows, bool parallel) const {
  const GemmKernels& kernel = kernels().gemm[int(dtype_)];
  const GemmArgs args = weight_args(layer, rows);
  const Index columns = kPanelsTogether * kernel.columns;
  parallel_for(pieces(layer.in, columns), parallel, [&](Index i) {
    kernel.make_lists(args, i * columns, std::min((i + 1) * columns, layer.in), layer.lists);
  });
}

void Program::run_tasks(Index begin, Index end, Index rows, bool parallel, const double* coefs) {
  parallel_for(end - begin, parallel, [&](Index i) {
    const Task& task = tasks_[std::size_t(begin + i)];
    if (task.share >= 0)
      run_strip_task(task.share, rows, coefs);
    else
      task.bias ? run_bias_task(task, rows, coefs) : run_weight_task(task, rows, coefs);
  });
}

void Program::end_weights() {
  if (strips_.taken() && tasks_square(layers_.front()))
    for (Index r = 0; r < layers_.front().out; ++r)
      row_squares_[std::size_t(layers_.front().first_row + r)] = strips_.squares(r);
  for (PlacedLayer& layer : layers_)
    if (layer.kind == LayerKind::linear && layer.weight.trained() && layer.weight.use == 0)
      layer.squares_known = tasks_square(layer);
}

void Program::update_weights(Index rows, const double* coefs) {
  const bool parallel = begin_weights(rows);
  const bool locks = fused_ && locks_.empty();  // strips hold them from step to step
  if (locks) lock_plans();
  Index begin = 0;
  for (const Index end : task_ends_) {
    run_tasks(begin, end, rows, parallel, coefs);
    begin = end;
  }
  parallel_for(Index(updates_.size()), true,
               [&](Index i) { run_update_task(updates_[std::size_t(i)], coefs); });
  if (locks) locks_.clear();
  end_weights();
}

void Program::lock_plans() {
  for (const ProgramPlan& plan : plans_) locks_.push_back(plan.plan->lock());
}

const double* Program::row_of(const ProgramParameter& p, const double* coefs) const {
  const ProgramPlan& plan = plans_[std::size_t(p.plan)];
  const Index row = plan.sets.empty() ? 0 : plan.sets[std::size_t(p.tensor)];
  return coefs + plan.first + row * plan.width;
}

// Rows and columns of dW = dZ' X, stored, or held in cache for the update and forgotten.
void Program::run_weight_task(const Task& task, Index rows, const double* coefs) {
  const PlacedLayer& layer = layers_[std::size_t(task.layer)];
  const ProgramParameter& weight = layer.weight;
  GemmArgs args = weight_args(layer, rows);
  args.bf16 = bf16_;
  args.zeros = layer.zeros;
  args.lists = layer.lists;
  if (layer.stored_gradient) args.c = layer.stored_gradient;
  if (weight.grad || layer.stored_gradient) {
    run_gemm(dtype_, args, task.begin_row, task.end_row, task.begin_col, task.end_col);
    return;
  }
  const Index width = task.end_col - task.begin_col, height = task.end_row - task.begin_row;
  const char* const p =
      static_cast<const char*>(weight.data) + (task.begin_row * layer.in + task.begin_col) * item_;
  char* const piece = beside(p, piece_room.reserve(height * width * item_ + kPage));
  args.c_row = width;
  args.c = piece - (task.begin_row * width + task.begin_col) * item_;
  run_gemm(dtype_, args, task.begin_row, task.end_row, task.begin_col, task.end_col);
  const StepPlan& plan = *plans_[std::size_t(weight.plan)].plan;
  const double* const row = row_of(weight, coefs);
  // Whole rows lie side by side in the weight too.
  const Index runs = width == layer.in ? 1 : height, length = width * height / runs;
  for (Index r = 0; r < runs; ++r) {
    const Index at = (task.begin_row + r) * layer.in + task.begin_col;
    plan.update_piece(weight.tensor, at, at + length, piece + r * length * item_, row);
  }
  if (tasks_square(layer)) add_row_squares(layer, task.begin_row, task.end_row);
}

// Whole rows of a gradient that was stored.
void Program::run_update_task(const Task& task, const double* coefs) {
  const PlacedLayer& layer = layers_[std::size_t(task.layer)];
  const ProgramParameter& weight = layer.weight;
  const Index begin = task.begin_row * layer.in, end = task.end_row * layer.in;
  plans_[std::size_t(weight.plan)].plan->update_piece(
      weight.tensor, begin, end, layer.stored_gradient + begin * item_, row_of(weight, coefs));
  if (tasks_square(layer)) add_row_squares(layer, task.begin_row, task.end_row);
}

// The column sums of dZ.
void Program::run_bias_task(const Task& task, Index rows, const double* coefs) {
  const PlacedLayer& layer = layers_[std::size_t(task.layer)];
  const ProgramParameter& bias = layer.bias;
  const Index first = task.begin_col, n = task.end_col - first;
  double sums[kBiasColumns];
  kernels().sums[int(dtype_)].column_sums({layer.gradient, layer.out, first, task.end_col, sums - first}, 0,
                                          rows);
  char* const grad =
      bias.grad ? static_cast<char*>(bias.grad) + first * item_ : piece_room.reserve(n * item_);
  const auto store = [&](auto* g) {
    using T = std::remove_pointer_t<decltype(g)>;
    for (Index j = 0; j < n; ++j) g[j] = bias.use > 0 ? g[j] + T(sums[j]) : T(sums[j]);
  };
  dtype_ == DType::f32 ? store(reinterpret_cast<float*>(grad)) : store(reinterpret_cast<double*>(grad));
  if (!bias.grad)
    plans_[std::size_t(bias.plan)].plan->update_piece(bias.tensor, first, task.end_col, grad,
                                                      row_of(bias, coefs));
}

// The updates of stored gradients, all clipped together.
void Program::step_plans(ProgramRun& run, const double* coefs) {
  if (!std::isinf(run.max_norm)) {
    parts_.clear();
    for (const ProgramPlan& plan : plans_) parts_.push_back(plan.plan->norm(plan.grads.data(), 2.0));
    run.norm = joint_norm(parts_.data(), Index(parts_.size()));
    const double factor = clip_factor(run.norm, run.max_norm);
    std::copy(coefs, coefs + coefs_width_, scaled_.begin());
    for (const ProgramPlan& plan : plans_)
      for (Index r = 0; r < plan.rows; ++r) scaled_[std::size_t(plan.first + r * plan.width)] *= factor;
    coefs = scaled_.data();
  }
  for (const ProgramPlan& plan : plans_) {
    if (std::all_of(plan.grads.begin(), plan.grads.end(), [](const void* g) { return !g; })) continue;
    plan.plan->step(plan.grads.data(), coefs + plan.first, plan.width,
                    plan.sets.empty() ? nullptr : plan.sets.data());
  }
}

}  // namespace fastopt
