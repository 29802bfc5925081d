// The rows driver: softmax, log-softmax, their gradients, and cross-entropy with its gradient in one pass
// over a row that stays in cache.
//
// Every loop runs over groups of 16 lanes. A long row is cut into groups of 16 neighbours. Of rows too short
// for that, 16 are transposed into a tile, one to a lane. The loops that hold a formula are the same for
// both.
#include "core/dispatch.hpp"
#include "cpu/lanes.hpp"
#include "cpu/stream.hpp"
#include "cpu/table.hpp"
#include "formulas/target.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

constexpr Index kNarrow = 32;  // rows of up to this many columns are handled 16 at a time

// Largest elements of each lane; a NaN may be passed over, as the exponentials will have it.
template <class T>
FO_HD void push_max(const T* x, Index groups, T* lane) {
  for (Index k = 0; k < groups; ++k) {
    FO_LANES
    for (int l = 0; l < kLanes; ++l) lane[l] = max(lane[l], x[k * kLanes + l]);
  }
}

// sum += exp(x - shift), each in its lane; with Keep the exponentials go to y. What follows x in memory, from
// `ahead` elements on, is brought into the cache meanwhile.
template <bool Keep, class T>
FO_HD void push_exp(const T* x, T* y, Index groups, const T* shift, T* sum, Index ahead = 0) {
  for (Index k = 0; k < groups; ++k) {
    if (ahead)
      for (int l = 0; l < kLanes; l += int(kLine<T>)) __builtin_prefetch(x + k * kLanes + ahead + l, 0, 2);
    FO_LANES
    for (int l = 0; l < kLanes; ++l) {
      const T e = exp_term(x[k * kLanes + l] - shift[l]);
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

// Of at least 16 elements.
template <class T>
T row_max(const T* x, Index columns) {
  constexpr int kWide = 4 * kLanes;  // one set of lanes would wait for itself
  T wide[kWide], lane[kLanes];
  for (int l = 0; l < kWide; ++l) wide[l] = Max<T>::identity;
  Index i = 0;
  for (; i + kWide <= columns; i += kWide) {
    FO_LANES
    for (int l = 0; l < kWide; ++l) wide[l] = max(wide[l], x[i + l]);
  }
  fill(lane, Max<T>::identity);
  push_max(wide, 4, lane);
  push_max(x + i, (columns - i) / kLanes, lane);
  push_max(x + columns - kLanes, 1, lane);  // the end, some of it again
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
    push_exp<Keep>(x + at, Keep ? y + at : nullptr, whole, shift, lane, columns);
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

  // After find_top. With Keep the exponentials are left in the tile, or in `kept` for a long row.
  template <bool Keep>
  FO_HD void add_exponentials(const T* x, T* kept) {
    if (narrow()) {
      fill(sum, T(0));
      push_exp<Keep>(tile, tile, columns, top, sum);
    } else {
      fill(sum, row_exp<Keep>(x, kept, columns, top[0]));
    }
    FO_LANES
    for (int l = 0; l < kLanes; ++l) log_sum[l] = log(sum[l]);
  }

  // y = the kept exponentials times the factor of their row, then what adjust(row, at, n, y) makes of the n
  // columns from `at` on.
  template <class F>
  FO_HD void write_scaled(const T* kept, const T* factor, T* y, bool stream, F adjust) const {
    if (narrow()) {
      for (Index r = 0; r < rows; ++r) {
        T* row = y + r * columns;
        for (Index c = 0; c < columns; ++c) row[c] = tile[c * kLanes + r] * factor[r];
        adjust(r, 0, columns, row);
      }
      return;
    }
    const T f = factor[0];
    write_row(y, columns, stream, [&](Index at, Index n, T* out) {
      FO_INDEPENDENT
      for (Index j = 0; j < n; ++j) out[j] = kept[at + j] * f;
      adjust(0, at, n, out);
    });
  }
};

// Takes every group of the rows [begin, end) through find_top, exponentials(group, x, y) and
// finish(group, x, y), x and y at its first element. The next group's largest elements are found in between:
// work that waits neither for the sum of the exponentials nor is waited for by it.
template <class T, class E, class F>
FO_HD void for_groups(const void* x_, void* y_, Index columns, Index begin, Index end, E exponentials,
                      F finish) {
  const T* x = static_cast<const T*>(x_);
  T* y = static_cast<T*>(y_);
  Group<T> groups[2];
  const auto open = [&](Group<T>& group, Index row) {
    group.columns = columns;
    group.first = row;
    group.rows = group.narrow() ? at_most(end - row, kLanes) : 1;
    group.find_top(x + row * columns);
  };
  if (begin < end) open(groups[0], begin);
  for (Index row = begin, k = 0, next; row < end; row = next, k ^= 1) {
    Group<T>& group = groups[k];
    const Index at = row * columns;
    exponentials(group, x + at, y ? y + at : nullptr);
    next = row + group.rows;
    if (next < end) open(groups[k ^ 1], next);
    finish(group, x + at, y ? y + at : nullptr);
  }
}

template <class T>
void softmax(const SoftmaxArgs& args, Index begin_row, Index end_row) {
  T* scratch = static_cast<T*>(args.scratch);
  for_groups<T>(
      args.x, args.y, args.columns, begin_row, end_row,
      [&](Group<T>& group, const T* x, T* y) {
        group.template add_exponentials<true>(x, scratch ? scratch : y);
      },
      [&](const Group<T>& group, const T*, T* y) {
        T factor[kLanes];
        for (int l = 0; l < kLanes; ++l) factor[l] = T(1) / group.sum[l];
        group.write_scaled(scratch ? scratch : y, factor, y, scratch, [](Index, Index, Index, T*) {});
      });
  if (scratch) stream_end();
}

template <class T>
void log_softmax(const SoftmaxArgs& args, Index begin_row, Index end_row) {
  const bool stream = args.scratch;
  for_groups<T>(
      args.x, args.y, args.columns, begin_row, end_row,
      [&](Group<T>& group, const T* x, T*) { group.template add_exponentials<false>(x, nullptr); },
      [&](const Group<T>& group, const T* x, T* y) {
        const Index columns = group.columns;
        for (Index r = 0; r < group.rows; ++r) {
          const T top = group.top[r], log_sum = group.log_sum[r];
          const T* row = x + r * columns;
          write_row(y + r * columns, columns, stream, [&](Index at, Index n, T* out) {
            FO_INDEPENDENT
            for (Index j = 0; j < n; ++j) out[j] = row[at + j] - top - log_sum;
          });
        }
      });
  if (stream) stream_end();
}

template <class T>
void softmax_grad(const SoftmaxGradArgs& args, Index begin_row, Index end_row) {
  const Index columns = args.columns;
  for (Index row = begin_row; row < end_row; ++row) {
    const T* dy = static_cast<const T*>(args.dy) + row * columns;
    const T* y = static_cast<const T*>(args.y) + row * columns;
    Lanes<Dot> lanes;
    lanes.push_all(columns, dy, y);
    const T mean = T(lanes.value());
    write_row(static_cast<T*>(args.dx) + row * columns, columns, args.stream, [&](Index at, Index n, T* out) {
      FO_INDEPENDENT
      for (Index j = 0; j < n; ++j) out[j] = y[at + j] * (dy[at + j] - mean);
    });
  }
  if (args.stream) stream_end();
}

template <class T>
void log_softmax_grad(const SoftmaxGradArgs& args, Index begin_row, Index end_row) {
  const Index columns = args.columns;
  for (Index row = begin_row; row < end_row; ++row) {
    const T* dy = static_cast<const T*>(args.dy) + row * columns;
    const T* y = static_cast<const T*>(args.y) + row * columns;
    Lanes<Sum> lanes;
    lanes.push_all(columns, dy);
    const T sum = T(lanes.value());
    write_row(static_cast<T*>(args.dx) + row * columns, columns, args.stream, [&](Index at, Index n, T* out) {
      FO_INDEPENDENT
      for (Index j = 0; j < n; ++j) out[j] = fma(-exp(y[at + j]), sum, dy[at + j]);
    });
  }
  if (args.stream) stream_end();
}

// A row's target with the loops over its classes.
template <class T>
struct RowTarget : Target<T> {
  using Base = Target<T>;
  using Base::columns, Base::probabilities, Base::weight, Base::smooth, Base::label, Base::on_label,
      Base::ignored, Base::spread;

  using Base::Base;

  // The spread part of q for n classes.
  FO_HD void fill_spread(Index at, Index n, T* q) const {
    if (probabilities) {
      FO_INDEPENDENT
      for (Index j = 0; j < n; ++j) q[j] = this->smoothed(probabilities[at + j]);
    } else {
      for (Index j = 0; j < n; ++j) q[j] = smooth;
    }
    if (!weight) return;
    FO_INDEPENDENT
    for (Index j = 0; j < n; ++j) q[j] *= weight[at + j];
  }

  // sum(q) and sum(q (x - top)).
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
      T q[kLaneBlock], x_centred[kLaneBlock];
      fill_spread(at, n, q);
      FO_INDEPENDENT
      for (Index j = 0; j < n; ++j) x_centred[j] = centred(q[j], x[at + j], top);
      q_sum.push(n, q);
      q_dot.push(n, q, x_centred);
    }
    mass += q_sum.value();
    dot += q_dot.value();
  }

  // grad -= scale q for n classes, which lie at grad; of an ignored row nothing remains.
  FO_HD void subtract(T scale, Index at, Index n, T* grad) const {
    if (ignored) {
      for (Index j = 0; j < n; ++j) grad[j] = T(0);
      return;
    }
    if (label >= at && label < at + n) grad[label - at] = this->without_label(scale, grad[label - at]);
    if (!spread()) return;
    for (Index begin = 0; begin < n; begin += kLaneBlock) {
      const Index m = at_most(n - begin, kLaneBlock);
      T q[kLaneBlock];
      fill_spread(at + begin, m, q);
      FO_INDEPENDENT
      for (Index j = 0; j < m; ++j) grad[begin + j] = Base::without_spread(scale, q[j], grad[begin + j]);
    }
  }
};

template <class T>
double cross_entropy(const CrossEntropyArgs& args, Index begin_row, Index end_row) {
  T *values = static_cast<T*>(args.value), *scratch = static_cast<T*>(args.scratch);
  const T scale = T(args.grad_scale);
  double total = 0.0;
  RowTarget<T> targets[kLanes];
  double mass[kLanes], dot[kLanes];
  for_groups<T>(
      args.x, args.grad, args.columns, begin_row, end_row,
      [&](Group<T>& group, const T* x, T* grad) {
        // Before the exponentials, which may overwrite the logits.
        for (Index r = 0; r < group.rows; ++r) {
          targets[r] = RowTarget<T>(args, group.first + r);
          targets[r].sums(x + r * args.columns, group.top[r], mass[r], dot[r]);
        }
        if (grad) {
          group.template add_exponentials<true>(x, scratch ? scratch : grad);
        } else {
          group.template add_exponentials<false>(x, nullptr);
        }
      },
      [&](const Group<T>& group, const T*, T* grad) {
        T factor[kLanes];
        for (Index r = 0; r < group.rows; ++r) {
          const double value = targets[r].loss(mass[r], dot[r], group.log_sum[r]);
          total += value;
          if (values) values[group.first + r] = T(value);
          factor[r] = scale * T(mass[r]) / group.sum[r];
        }
        if (!grad) return;
        group.write_scaled(
            scratch ? scratch : grad, factor, grad, scratch,
            [&](Index r, Index at, Index n, T* out) { targets[r].subtract(scale, at, n, out); });
      });
  if (scratch) stream_end();
  return total;
}

// Cross-entropy of log-probabilities that are given.
template <class T>
double nll(const CrossEntropyArgs& args, Index begin_row, Index end_row) {
  const T* x = static_cast<const T*>(args.x);
  T *values = static_cast<T*>(args.value), *grad = static_cast<T*>(args.grad);
  double total = 0.0;
  for (Index row = begin_row; row < end_row; ++row) {
    const RowTarget<T> target(args, row);
    const Index at = row * args.columns;
    const double value = target.ignored ? 0.0 : -double(target.on_label) * double(x[at + target.label]);
    total += value;
    if (values) values[row] = T(value);
    if (!grad) continue;
    for (Index c = 0; c < args.columns; ++c) grad[at + c] = T(0);
    target.subtract(T(args.grad_scale), 0, args.columns, grad + at);
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
