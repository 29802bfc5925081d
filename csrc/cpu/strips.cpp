// A linear layer by samples that are often zero, share by share: see StripShare. Its weight lies as the tiles
// read it, its gradient as they leave it, so nothing is packed or transposed.
#include "core/dispatch.hpp"
#include "cpu/sparse.hpp"
#include "cpu/table.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

FO_HD Index round_up(Index n, Index unit) { return (n + unit - 1) / unit * unit; }

template <class T>
constexpr Index kStrip = Simd<T>::size;
// A batch is one block of k of the weight's gradient, and a block of inputs one of lanes.
static_assert(kDepth<float> <= kLaneBlock && kDepth<double> <= kLaneBlock && kLaneBlock < Step(-1));

// See StripKernels.
template <class T>
void place(StripShare& share, Index depth) {
  share.depth = depth;
  share.inputs = round_up(depth, kListedColumns);
  share.x_row = round_up(depth, kZeroLanes<T>);
}

template <class T>
Index list_bytes(const StripShare& share) {
  const Index rows = round_up(share.rows, kListedRows) / kListedRows * list_room(share.depth),
              columns = share.x_row / kListedColumns * list_room(share.rows);
  return (rows > columns ? rows : columns) * Index(sizeof(Step));
}

template <class T>
void fill(const StripShare& share, const void* weight, Index in, Index outputs, void* strip_) {
  T* const strip = static_cast<T*>(strip_);
  pack_panel(static_cast<const T*>(weight), in, 1, outputs, share.depth, kStrip<T>, strip);
  for (Index i = share.depth * kStrip<T>; i < share.inputs * kStrip<T>; ++i) strip[i] = T(0);
}

template <class T>
void restore(const StripShare& share, const void* strip, Index in, Index outputs, void* weight) {
  transpose(static_cast<const T*>(strip), kStrip<T>, share.depth, outputs, in, static_cast<T*>(weight));
}

// What a product with zero may not leave out.
void list_all(Index n, Step* list) {
  *list = Step(n);
  for (Index i = 0; i < n; ++i) list[i + 1] = Step(i);
}

// One list's tile: C's rows are c_row apart, its vectors c_vector.
template <class T, int Rows, int Vectors>
static void strip_tile(const Step* list, const T* a, Index a_row, Index a_step, const T* b, Index b_step,
                       Index b_vector, T* c, Index c_row, Index c_vector) {
  Vector<T> sum[Rows][Vectors];
  add_steps(list + 1, *list, a, a_row, a_step, b, b_step, b_vector, 2 * b_vector, sum);
  FO_UNROLL
  for (int i = 0; i < Rows; ++i) {
    FO_UNROLL
    for (int j = 0; j < Vectors; ++j) store_vector(c + i * c_row + j * c_vector, sum[i][j] + Vector<T>{});
  }
}

template <int N>
struct Count {};
// Calls f with a number of vectors that the compiler knows.
template <int Most, class F>
FO_HD void with_vectors(Index vectors, const F& f) {
  if constexpr (Most > 1)
    if (vectors < Most) return with_vectors<Most - 1>(vectors, f);
  f(Count<Most>());
}

template <class T>
void forward(const StripShare& share) {
  const T *const x = static_cast<const T*>(share.x), *const weight = static_cast<const T*>(share.weight);
  const Index strip = share.inputs * kStrip<T>, room = list_room(share.depth);
  Step* const lists = static_cast<Step*>(share.lists);
  const bool finite = share.finite || all_finite(weight, 0, 1, share.strips * strip);
  for (Index r = 0; r < share.rows; r += kListedRows) {
    Step* const list = lists + r / kListedRows * room;
    if (finite)
      *list = Step(steps_of_rows(x + r * share.x_row, share.x_row, at_most(kListedRows, share.rows - r),
                                 share.depth, list + 1));
    else
      list_all(share.depth, list);
  }
  const Index passes = (share.strips + kListedVectors - 1) / kListedVectors;
  for (Index pass = 0; pass < passes; ++pass) {
    const Index first = share.strips * pass / passes, end = share.strips * (pass + 1) / passes;
    T* const sums = static_cast<T*>(share.sums) + first * kStrip<T>;
    with_vectors<kListedVectors>(end - first, [&]<int V>(Count<V>) __attribute__((always_inline)) {
      for (Index r = 0; r < share.rows; r += kListedRows)
        strip_tile<T, kListedRows, V>(lists + r / kListedRows * room, x + r * share.x_row,
                                      r + 1 < share.rows ? share.x_row : 0, 1, weight + first * strip,
                                      kStrip<T>, strip, sums + r * share.sums_row, share.sums_row, kStrip<T>);
    });
  }
}

template <class T>
void join(const StripShare& share, bool add, void* c, Index c_row, Index begin, Index end) {
  for (Index r = begin; r < end; ++r) {
    const T* const sums = static_cast<const T*>(share.sums) + r * share.sums_row;
    T* const to = static_cast<T*>(c) + r * c_row;
    if (!add) {
      __builtin_memcpy(to, sums, std::size_t(share.outputs) * sizeof(T));
      continue;
    }
    Index j = 0;
    for (; j + kStrip<T> <= share.outputs; j += kStrip<T>)
      store_vector(to + j, load_vector(to + j) + load_vector(sums + j));
    for (; j < share.outputs; ++j) to[j] += sums[j];
  }
}

template <class T>
void list_columns(const StripShare& share) {
  constexpr Index G = kZeroLists<T>;
  const T *const x = static_cast<const T*>(share.x), *const dz = static_cast<const T*>(share.gradient);
  const Index room = list_room(share.rows);
  const bool finite = all_finite(dz, share.gradient_row, share.rows, share.outputs);
  Step* lists = static_cast<Step*>(share.lists);
  for (Index i = 0; i < share.x_row; i += kZeroLanes<T>, lists += G * room) {
    Index counts[G];
    if (finite) steps_of_lanes(x + i, share.x_row, share.rows, room, lists + 1, counts);
    for (Index l = 0; l < G; ++l)
      finite ? void(lists[l * room] = Step(counts[l])) : list_all(share.rows, lists + l * room);
  }
}

template <class T>
void pack(const StripShare& share, Index first, Index strips, void* panel) {
  const Index begin = first * kStrip<T>, width = strips * kStrip<T>;
  pack_panel(static_cast<const T*>(share.gradient) + begin, 1, share.gradient_row,
             at_most(width, share.outputs - begin), share.rows, width, static_cast<T*>(panel));
}

template <class T>
void weight_gradient(const StripShare& share, const void* panel, Index strips, Index begin, Index end,
                     void* piece) {
  const Index room = list_room(share.rows);
  const Step* const lists = static_cast<const Step*>(share.lists);
  with_vectors<kTurnedVectors>(strips, [&]<int V>(Count<V>) __attribute__((always_inline)) {
    for (Index i = begin; i < end; i += kListedColumns)
      strip_tile<T, kListedColumns, V>(lists + i / kListedColumns * room, static_cast<const T*>(share.x) + i,
                                       1, share.x_row, static_cast<const T*>(panel), V * kStrip<T>, kStrip<T>,
                                       static_cast<T*>(piece) + (i - begin) * kStrip<T>, kStrip<T>,
                                       (end - begin) * kStrip<T>);
  });
}

// Lanes as in cpu/lanes.hpp: those of an output go from input to input.
template <class T>
void squares(const StripShare& share, const void* strip, double* sums) {
  constexpr Index W = kStrip<T>;
  for (Index first = 0; first < W; first += Simd<double>::size) {
    const T* x = static_cast<const T*>(strip) + first;
    Vector<double> lane[kLanes] = {};
    const auto add = [&](int l) __attribute__((always_inline)) {
      const Vector<double> y = load_doubles(x + l * W);
      lane[l] = fma(y, y, lane[l]);
    };
    Index left = share.depth;
    for (; left >= kLanes; left -= kLanes, x += kLanes * W) {
      FO_UNROLL
      for (int l = 0; l < kLanes; ++l) add(l);
    }
    FO_UNROLL
    for (int l = 0; l < kLanes; ++l)
      if (l < left) add(l);
    FO_UNROLL
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    store_vector(sums + first, lane[0]);
  }
}

template <class T>
constexpr StripKernels strip_kernels() {
  if constexpr (kFindsZeros) {
    return {kStrip<T>, kTurnedVectors,  kDepth<T>, kRowsOfDots,        block_depth<T>,
            place<T>,  list_bytes<T>,   fill<T>,   restore<T>,         forward<T>,
            join<T>,   list_columns<T>, pack<T>,   weight_gradient<T>, squares<T>};
  } else {
    StripKernels kernels{};
    kernels.depth = block_depth<T>;
    return kernels;
  }
}
constexpr StripKernels kStrips[] = {strip_kernels<float>(), strip_kernels<double>()};

}  // namespace

const StripKernels* strip_table() { return kStrips; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
