// The rows driver: softmax, log-softmax, their gradients, and cross-entropy with its gradient in one pass
// over a row that stays in cache.
//
// Every loop runs over groups of 16 lanes. A long row is cut into groups of 16 neighbours. Of rows too short
// for that, 16 are transposed into a tile, one to a lane. The loops that hold a formula are the same for
// both.
#include "core/dispatch.hpp"
#include "cpu/lanes.hpp"
#include "cpu/table.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

constexpr Index kNarrow = 32;  // rows of up to this many columns are handled 16 at a time

Index at_most(Index n, Index limit) { return n < limit ? n : limit; }

// Largest elements of each lane.
template <class T>
FO_HD void push_max(const T* x, Index groups, T* lane) {
  for (Index k = 0; k < groups; ++k) {
    FO_LANES
    for (int l = 0; l < kLanes; ++l) lane[l] = Max<T>::push(lane[l], x[k * kLanes + l]);
  }
}

// sum += exp(x - shift), each in its lane; with Keep the exponentials go to y.
template <bool Keep, class T>
FO_HD void push_exp(const T* x, T* y, Index groups, const T* shift, T* sum) {
  for (Index k = 0; k < groups; ++k) {
    FO_LANES
    for (int l = 0; l < kLanes; ++l) {
      const T e = exp(x[k * kLanes + l] - shift[l]);
      if constexpr (Keep) y[k * kLanes + l] = e;
      sum[l] = Sum<T>::push(sum[l], e);
    }
  }
}

template <class T>
FO_HD void fill(T* lane, T value) {
  for (int l = 0; l < kLanes; ++l) lane[l] = value;
}

// The end of a row as a whole group, filled up with elements whose exponential is 0.
template <class T>
struct Tail {
  alignas(64) T group[kLanes];
  FO_HD Tail(const T* x, Index n) {
    fill(group, Max<T>::identity);
    for (Index j = 0; j < n; ++j) group[j] = x[j];
  }
};

template <class T>
T row_max(const T* x, Index columns) {
  T lane[kLanes];
  fill(lane, Max<T>::identity);
  const Index whole = columns / kLanes;
  push_max(x, whole, lane);
  const Tail<T> tail(x + whole * kLanes, columns % kLanes);
  push_max(tail.group, 1, lane);
  return fold<Max<T>>(lane);
}

// The sum of exp(x - shift) over a row; blocks are summed in T, the row in double.
template <bool Keep, class T>
T row_exp(const T* x, T* y, Index columns, T shift_) {
  T shift[kLanes], lane[kLanes];
  fill(shift, shift_);
  double sum = 0.0;
  for (Index at = 0; at < columns; at += kLaneBlock) {
    const Index n = at_most(columns - at, kLaneBlock), whole = n / kLanes, rest = n % kLanes;
    fill(lane, T(0));
    push_exp<Keep>(x + at, Keep ? y + at : nullptr, whole, shift, lane);
    if (rest) {
      const Index end = at + whole * kLanes;
      Tail<T> tail(x + end, rest);
      push_exp<Keep>(tail.group, tail.group, 1, shift, lane);
      if constexpr (Keep)
        for (Index j = 0; j < rest; ++j) y[end + j] = tail.group[j];
    }
    sum += double(fold<Sum<T>>(lane));
  }
  return T(sum);
}

// One to sixteen rows in work, a lane for each: largest element, sum of exponentials and its logarithm.
template <class T>
struct Group {
  Index first, rows, columns;
  alignas(64) T top[kLanes], sum[kLanes], log_sum[kLanes];
  alignas(64) T tile[kNarrow * kLanes];  // of narrow rows: column by column, 16 rows wide

  FO_HD bool narrow() const { return columns <= kNarrow; }

  FO_HD void find_top(const T* x) {
    if (narrow()) {
      if (rows < kLanes)
        for (Index k = 0; k < columns * kLanes; ++k) tile[k] = T(0);
      for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < columns; ++c) tile[c * kLanes + r] = x[r * columns + c];
      fill(top, Max<T>::identity);
      push_max(tile, columns, top);
    } else {
      fill(top, row_max(x, columns));
    }
  }

  // After find_top. With Keep the exponentials are left in the tile, or in y for a long row.
  template <bool Keep>
  FO_HD void add_exponentials(const T* x, T* y) {
    if (narrow()) {
      fill(sum, T(0));
      push_exp<Keep>(tile, tile, columns, top, sum);
    } else {
      fill(sum, row_exp<Keep>(x, y, columns, top[0]));
    }
    FO_LANES
    for (int l = 0; l < kLanes; ++l) log_sum[l] = log(sum[l]);
  }

  // y = the kept exponentials times the factor of their row.
  FO_HD void write_scaled(const T* factor, T* y) const {
    if (narrow()) {
      for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < columns; ++c) y[r * columns + c] = tile[c * kLanes + r] * factor[r];
    } else {
      const T f = factor[0];
      FO_INDEPENDENT
      for (Index c = 0; c < columns; ++c) y[c] *= f;
    }
  }
};

// Calls f with every group of the rows [begin, end), x and y at its first element.
template <class T, class F>
FO_HD void for_groups(const void* x, void* y, Index columns, Index begin, Index end, F f) {
  Group<T> group;
  group.columns = columns;
  for (Index row = begin; row < end; row += group.rows) {
    group.first = row;
    group.rows = group.narrow() ? at_most(end - row, kLanes) : 1;
    const Index at = row * columns;
    f(group, static_cast<const T*>(x) + at, y ? static_cast<T*>(y) + at : nullptr);
  }
}

template <class T>
void softmax(const SoftmaxArgs& args, Index begin_row, Index end_row) {
  for_groups<T>(args.x, args.y, args.columns, begin_row, end_row, [](Group<T>& group, const T* x, T* y) {
    group.find_top(x);
    group.template add_exponentials<true>(x, y);
    T factor[kLanes];
    for (int l = 0; l < kLanes; ++l) factor[l] = T(1) / group.sum[l];
    group.write_scaled(factor, y);
  });
}

template <class T>
void log_softmax(const SoftmaxArgs& args, Index begin_row, Index end_row) {
  for_groups<T>(args.x, args.y, args.columns, begin_row, end_row, [](Group<T>& group, const T* x, T* y) {
    group.find_top(x);
    group.template add_exponentials<false>(x, y);
    const Index columns = group.columns;
    for (Index r = 0; r < group.rows; ++r) {
      const T top = group.top[r], log_sum = group.log_sum[r];
      FO_INDEPENDENT
      for (Index c = 0; c < columns; ++c) y[r * columns + c] = x[r * columns + c] - top - log_sum;
    }
  });
}

template <class T>
void softmax_grad(const SoftmaxGradArgs& args, Index begin_row, Index end_row) {
  const Index columns = args.columns;
  for (Index row = begin_row; row < end_row; ++row) {
    const T* dy = static_cast<const T*>(args.dy) + row * columns;
    const T* y = static_cast<const T*>(args.y) + row * columns;
    T* dx = static_cast<T*>(args.dx) + row * columns;
    Lanes<Dot> lanes;
    lanes.push_all(columns, dy, y);
    const T mean = T(lanes.value());
    FO_INDEPENDENT
    for (Index c = 0; c < columns; ++c) dx[c] = y[c] * (dy[c] - mean);
  }
}

template <class T>
void log_softmax_grad(const SoftmaxGradArgs& args, Index begin_row, Index end_row) {
  const Index columns = args.columns;
  for (Index row = begin_row; row < end_row; ++row) {
    const T* dy = static_cast<const T*>(args.dy) + row * columns;
    const T* y = static_cast<const T*>(args.y) + row * columns;
    T* dx = static_cast<T*>(args.dx) + row * columns;
    Lanes<Sum> lanes;
    lanes.push_all(columns, dy);
    const T sum = T(lanes.value());
    FO_INDEPENDENT
    for (Index c = 0; c < columns; ++c) dx[c] = fma(-exp(y[c]), sum, dy[c]);
  }
}

// What a row is compared with, weights and smoothing included, as a distribution q over the classes: the loss
// is -sum(q log p), its derivative sum(q) p - q. q is on_label at one class, plus, where it is spread, a part
// for every class. Szegedy et al., Rethinking the Inception Architecture (label smoothing), CVPR 2016.
template <class T>
struct Target {
  Index columns;
  const T *probabilities, *weight;  // of each class; null: no given distribution, no weights
  T keep, smooth;                   // what smoothing leaves of the given distribution, and adds to each class
  Index label = -1;
  T on_label = T(0);
  bool ignored = false;

  Target() = default;
  FO_HD Target(const CrossEntropyArgs& args, Index row)
      : columns(args.columns),
        probabilities(static_cast<const T*>(args.probabilities)),
        weight(static_cast<const T*>(args.weight)),
        keep(T(1.0 - args.label_smoothing)),
        smooth(T(args.label_smoothing / double(args.columns))) {
    if (probabilities) {
      probabilities += row * columns;
      return;
    }
    label = args.target[row];
    ignored = label == args.ignore_index;
    if (!ignored) on_label = weight ? keep * weight[label] : keep;
  }

  FO_HD bool spread() const { return probabilities || smooth != T(0); }

  // The spread part of q for n classes.
  FO_HD void fill_spread(Index at, Index n, T* q) const {
    if (probabilities) {
      FO_INDEPENDENT
      for (Index j = 0; j < n; ++j) q[j] = fma(keep, probabilities[at + j], smooth);
    } else {
      for (Index j = 0; j < n; ++j) q[j] = smooth;
    }
    if (!weight) return;
    FO_INDEPENDENT
    for (Index j = 0; j < n; ++j) q[j] *= weight[at + j];
  }

  // sum(q) and sum(q (x - top)). Where q is 0 a logit of -inf costs nothing.
  FO_HD void sums(const T* x, T top, double& mass, double& dot) const {
    mass = dot = 0.0;
    if (ignored) return;
    if (label >= 0) {
      mass = double(on_label);
      dot = mass * double(x[label] - top);
    }
    if (!spread()) return;
    Lanes<Sum> q_sum;
    Lanes<Dot> q_dot;
    for (Index at = 0; at < columns; at += kLaneBlock) {
      const Index n = at_most(columns - at, kLaneBlock);
      T q[kLaneBlock], centred[kLaneBlock];
      fill_spread(at, n, q);
      FO_INDEPENDENT
      for (Index j = 0; j < n; ++j) centred[j] = select(q[j] == T(0), T(0), x[at + j] - top);
      q_sum.push(n, q);
      q_dot.push(n, q, centred);
    }
    mass += q_sum.value();
    dot += q_dot.value();
  }

  // grad -= scale q; of an ignored row nothing remains.
  FO_HD void subtract(T scale, T* grad) const {
    if (ignored) {
      for (Index c = 0; c < columns; ++c) grad[c] = T(0);
      return;
    }
    if (label >= 0) grad[label] -= scale * on_label;  // rounded as in the factor: a sure row gets an exact 0
    if (!spread()) return;
    for (Index at = 0; at < columns; at += kLaneBlock) {
      const Index n = at_most(columns - at, kLaneBlock);
      T q[kLaneBlock];
      fill_spread(at, n, q);
      FO_INDEPENDENT
      for (Index j = 0; j < n; ++j) grad[at + j] = fma(-scale, q[j], grad[at + j]);
    }
  }
};

template <class T>
double cross_entropy(const CrossEntropyArgs& args, Index begin_row, Index end_row) {
  T* values = static_cast<T*>(args.value);
  const T scale = T(args.grad_scale);
  double total = 0.0;
  for_groups<T>(
      args.x, args.grad, args.columns, begin_row, end_row, [&](Group<T>& group, const T* x, T* grad) {
        Target<T> targets[kLanes];
        double mass[kLanes], dot[kLanes];
        group.find_top(x);
        // Before the exponentials, which may overwrite the logits.
        for (Index r = 0; r < group.rows; ++r) {
          targets[r] = Target<T>(args, group.first + r);
          targets[r].sums(x + r * args.columns, group.top[r], mass[r], dot[r]);
        }
        if (grad) {
          group.template add_exponentials<true>(x, grad);
        } else {
          group.template add_exponentials<false>(x, grad);
        }
        T factor[kLanes];
        for (Index r = 0; r < group.rows; ++r) {
          const double value = targets[r].ignored ? 0.0 : mass[r] * double(group.log_sum[r]) - dot[r];
          total += value;
          if (values) values[group.first + r] = T(value);
          factor[r] = scale * T(mass[r]) / group.sum[r];
        }
        if (!grad) return;
        group.write_scaled(factor, grad);
        for (Index r = 0; r < group.rows; ++r) targets[r].subtract(scale, grad + r * args.columns);
      });
  return total;
}

// Cross-entropy of log-probabilities that are given.
template <class T>
double nll(const CrossEntropyArgs& args, Index begin_row, Index end_row) {
  const T* x = static_cast<const T*>(args.x);
  T *values = static_cast<T*>(args.value), *grad = static_cast<T*>(args.grad);
  double total = 0.0;
  for (Index row = begin_row; row < end_row; ++row) {
    const Target<T> target(args, row);
    const Index at = row * args.columns;
    const double value = target.ignored ? 0.0 : -double(target.on_label) * double(x[at + target.label]);
    total += value;
    if (values) values[row] = T(value);
    if (!grad) continue;
    for (Index c = 0; c < args.columns; ++c) grad[at + c] = T(0);
    target.subtract(T(args.grad_scale), grad + at);
  }
  return total;
}

template <class T>
constexpr RowKernels row_kernels() {
  return {softmax<T>, log_softmax<T>, softmax_grad<T>, log_softmax_grad<T>, cross_entropy<T>, nll<T>};
}
constexpr RowKernels kRows[] = {row_kernels<float>(), row_kernels<double>()};

}  // namespace

const RowKernels* row_table() { return kRows; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
