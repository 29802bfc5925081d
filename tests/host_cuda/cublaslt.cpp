#include "cublaslt.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

#include "core/array.hpp"
#include "formulas/activations.hpp"
#include "formulas/storage.hpp"
#include "host_graph.hpp"
#include "host_runtime.hpp"

namespace fastopt::lt {

struct DescOpaque {
  Compute compute;
  DataType scale;
  PointerMode pointer_mode = PointerMode::host;
  Operation a = Operation::none, b = Operation::none;
  Epilogue epilogue = Epilogue::none;
  void *bias = nullptr, *aux = nullptr;
  std::int64_t aux_ld = 0;
};
struct LayoutOpaque {
  DataType type;
  Index rows, columns, ld;
};
struct PreferenceOpaque {
  std::uint64_t workspace = 0;
  std::uint32_t alignments[4] = {256, 256, 256, 256};
};

namespace {

using host_cuda::cublaslt;

// What an algorithm remembers of the search that has found it.
enum AlgoField { kNumber, kWorkspace, kAlignments };

Index item_bytes(DataType type) { return type == DataType::f64 ? 8 : type == DataType::f32 ? 4 : 2; }

double read(DataType type, const void* data, Index i) {
  switch (type) {
    case DataType::f32:
      return double(static_cast<const float*>(data)[i]);
    case DataType::f64:
      return static_cast<const double*>(data)[i];
    case DataType::bf16:
      return double(load(static_cast<const Bf16*>(data)[i]));
    default:
      return double(load(static_cast<const F16*>(data)[i]));
  }
}

void write(DataType type, void* data, Index i, double value) {
  switch (type) {
    case DataType::f32:
      static_cast<float*>(data)[i] = float(value);
      break;
    case DataType::f64:
      static_cast<double*>(data)[i] = value;
      break;
    case DataType::bf16:
      static_cast<Bf16*>(data)[i] = Store<Bf16>::from(float(value));
      break;
    default:
      static_cast<F16*>(data)[i] = Store<F16>::from(float(value));
  }
}

// To the ten bits behind the point that TF32 keeps, ties to even.
double rounded_to_tf32(double x) {
  const float narrow = float(x);
  std::uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  if (std::isfinite(x)) bits = (bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu;
  float rounded;
  std::memcpy(&rounded, &bits, sizeof rounded);
  return double(rounded);
}

bool has(Epilogue epilogue, Epilogue part) { return (std::uint32_t(epilogue) & std::uint32_t(part)) != 0; }
bool has_bias(Epilogue e) { return e != Epilogue::none && has(e, Epilogue::bias); }
bool has_gelu(Epilogue e) { return e != Epilogue::none && has(e, Epilogue::gelu); }
bool has_dgelu(Epilogue e) { return e == Epilogue::dgelu || e == Epilogue::dgelu_bgrad; }
bool has_aux(Epilogue e) { return (std::uint32_t(e) & 128u) != 0; }
bool sums(Epilogue e) {
  return e == Epilogue::dgelu_bgrad || e == Epilogue::bgrad_a || e == Epilogue::bgrad_b;
}

bool aligned(const void* pointer, Index to) {
  return reinterpret_cast<std::uintptr_t>(pointer) % std::uintptr_t(to) == 0;
}

// The matrix row by row, or column by column.
std::vector<double> elements(const void* data, const LayoutOpaque& x, bool by_columns, Compute compute) {
  std::vector<double> all(std::size_t(x.rows * x.columns));
  for (Index column = 0; column < x.columns; ++column)
    for (Index row = 0; row < x.rows; ++row) {
      const double value = read(x.type, data, column * x.ld + row);
      all[std::size_t(by_columns ? column * x.rows + row : row * x.columns + column)] =
          compute == Compute::fast_tf32 ? rounded_to_tf32(value) : value;
    }
  return all;
}

// What rows of x and of y, `depth` elements each, have as products, column by column. Columns are taken four
// at a time, for speed: each sum is in the order of k.
std::vector<double> product(const std::vector<double>& x, const std::vector<double>& y, Index rows,
                            Index columns, Index depth) {
  std::vector<double> sums(std::size_t(rows * columns));
  const auto take = [&]<int N>(Index column, std::integral_constant<int, N>) {
    for (Index row = 0; row < rows; ++row) {
      double sum[N] = {};
      for (Index k = 0; k < depth; ++k)
        for (int j = 0; j < N; ++j)
          sum[j] += x[std::size_t(row * depth + k)] * y[std::size_t((column + j) * depth + k)];
      for (int j = 0; j < N; ++j) sums[std::size_t((column + j) * rows + row)] = sum[j];
    }
  };
  Index column = 0;
  for (; column + 4 <= columns; column += 4) take(column, std::integral_constant<int, 4>());
  for (; column < columns; ++column) take(column, std::integral_constant<int, 1>());
  return sums;
}

bool types_fit(Compute compute, DataType a, DataType b, DataType c, DataType d) {
  if (a != b || c != d) return false;
  if (compute == Compute::f64) return a == DataType::f64 && d == DataType::f64;
  if (a == DataType::f64 || d == DataType::f64) return false;
  if (compute == Compute::fast_tf32) return a == DataType::f32 && d == DataType::f32;
  return d == a || d == DataType::f32;
}

bool shapes_fit(const DescOpaque& desc, const LayoutOpaque& a, const LayoutOpaque& b, const LayoutOpaque& d) {
  const bool a_turned = desc.a == Operation::transpose, b_turned = desc.b == Operation::transpose;
  for (const LayoutOpaque* x : {&a, &b, &d})
    if (x->rows < 1 || x->columns < 1 || x->ld < x->rows) return false;
  const Index depth = a_turned ? a.rows : a.columns;
  return (a_turned ? a.columns : a.rows) == d.rows && (b_turned ? b.rows : b.columns) == d.columns &&
         (b_turned ? b.columns : b.rows) == depth;
}

bool epilogue_fits(const DescOpaque& desc, const LayoutOpaque& d, Index depth) {
  const Epilogue e = desc.epilogue;
  if (e == Epilogue::none) return true;
  if (cublaslt.refuse_epilogues || desc.compute == Compute::f64) return false;
  if ((has_bias(e) || sums(e)) && !(desc.bias && aligned(desc.bias, item_bytes(d.type)))) return false;
  if (has_aux(e) && !(desc.aux && aligned(desc.aux, 16) && desc.aux_ld % 8 == 0 && desc.aux_ld >= d.rows))
    return false;
  return depth > 1 || !(has_dgelu(e) || sums(e));
}

Status create(Handle* handle) {
  *handle = reinterpret_cast<Handle>(&cublaslt);
  return Status::success;
}

Status desc_create(Desc* desc, Compute compute, DataType scale) {
  if ((compute == Compute::f64) != (scale == DataType::f64)) return Status::invalid_value;
  *desc = new DescOpaque{compute, scale};
  return Status::success;
}
Status desc_destroy(Desc desc) { return delete desc, Status::success; }

template <class T>
Status assign(T& to, const void* value, std::size_t bytes) {
  if (bytes != sizeof(T)) return Status::invalid_value;
  std::memcpy(&to, value, bytes);
  return Status::success;
}

Status desc_set(Desc desc, DescAttribute attribute, const void* value, std::size_t bytes) {
  switch (attribute) {
    case DescAttribute::pointer_mode:
      return assign(desc->pointer_mode, value, bytes);
    case DescAttribute::transpose_a:
      return assign(desc->a, value, bytes);
    case DescAttribute::transpose_b:
      return assign(desc->b, value, bytes);
    case DescAttribute::epilogue:
      return assign(desc->epilogue, value, bytes);
    case DescAttribute::bias_pointer:
      return assign(desc->bias, value, bytes);
    case DescAttribute::aux_pointer:
      return assign(desc->aux, value, bytes);
    case DescAttribute::aux_ld:
      return assign(desc->aux_ld, value, bytes);
  }
  return Status::invalid_value;
}

Status layout_create(Layout* layout, DataType type, std::uint64_t rows, std::uint64_t columns,
                     std::int64_t ld) {
  *layout = new LayoutOpaque{type, Index(rows), Index(columns), ld};
  return Status::success;
}
Status layout_destroy(Layout layout) { return delete layout, Status::success; }

Status preference_create(Preference* preference) {
  *preference = new PreferenceOpaque;
  return Status::success;
}
Status preference_destroy(Preference preference) { return delete preference, Status::success; }
Status preference_set(Preference preference, PreferenceAttribute attribute, const void* value,
                      std::size_t bytes) {
  if (attribute == PreferenceAttribute::most_workspace) return assign(preference->workspace, value, bytes);
  return assign(preference->alignments[int(attribute) - int(PreferenceAttribute::alignment_a)], value, bytes);
}

Status heuristic(Handle, Desc desc, Layout a, Layout b, Layout c, Layout d, Preference preference, int wanted,
                 Heuristic* results, int* found) {
  *found = 0;
  if (!shapes_fit(*desc, *a, *b, *d) || c->ld < c->rows) return Status::invalid_value;
  const Index depth = desc->a == Operation::transpose ? a->rows : a->columns;
  if (cublaslt.refuse_products || !types_fit(desc->compute, a->type, b->type, c->type, d->type) ||
      !epilogue_fits(*desc, *d, depth))
    return Status::not_supported;
  const DataType types[] = {a->type, b->type, c->type, d->type};
  for (int i = 0; i < 4; ++i)
    if (preference->alignments[i] < item_bytes(types[i])) return Status::not_supported;
  for (; *found < wanted && *found < host_cuda::kLtAlgos; ++*found) {
    Heuristic result = {};
    result.algo.data[kNumber] = std::uint64_t(*found);
    result.algo.data[kWorkspace] = result.workspace = preference->workspace / 2;
    for (int i = 0; i < 4; ++i) result.algo.data[kAlignments + i] = preference->alignments[i];
    results[*found] = result;
  }
  return Status::success;
}

Status multiply(Desc desc, const void* alpha_at, const void* a, Layout a_layout, const void* b,
                Layout b_layout, const void* beta_at, const void* c, Layout c_layout, void* d,
                Layout d_layout, const Algo* algo, void* workspace, std::size_t workspace_bytes) {
  const int number = int(algo->data[kNumber]);
  cublaslt.algos.push_back(number);
  if (number == cublaslt.failing_algo) return Status::execution_failed;
  const void* const pointers[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (!aligned(pointers[i], Index(algo->data[kAlignments + i]))) return Status::invalid_value;
  if (workspace_bytes < algo->data[kWorkspace] || !aligned(workspace, 256)) return Status::invalid_value;
  // Both ends of the workspace are written; all of it would be most of what a small product costs.
  const std::size_t used = algo->data[kWorkspace], end = std::min<std::size_t>(used, 4096);
  std::memset(workspace, 0xff, end);
  std::memset(static_cast<char*>(workspace) + used - end, 0xff, end);
  const Epilogue e = desc->epilogue;
  cublaslt.epilogues.push_back(e);
  cublaslt.scaled_on_device += desc->pointer_mode == PointerMode::device;
  host_cuda::device_clock += cublaslt.costs[e == Epilogue::none][number];

  const DataType scale = desc->scale, type = d_layout->type;
  const double alpha = read(scale, alpha_at, 0), beta = read(scale, beta_at, 0);
  const bool a_turned = desc->a == Operation::transpose, b_turned = desc->b == Operation::transpose;
  const Index rows = d_layout->rows, columns = d_layout->columns,
              depth = a_turned ? a_layout->rows : a_layout->columns;
  const std::vector<double> x = elements(a, *a_layout, a_turned, desc->compute),
                            y = elements(b, *b_layout, !b_turned, desc->compute);
  const std::vector<double> sums_over_k = product(x, y, rows, columns, depth);
  std::vector<double> row_sums(std::size_t(rows), 0.0);
  const GeluTanh<double> gelu(nullptr);
  for (Index column = 0; column < columns; ++column)
    for (Index row = 0; row < rows; ++row) {
      double value = alpha * sums_over_k[std::size_t(column * rows + row)];
      if (beta != 0.0) value += beta * read(type, c, column * c_layout->ld + row);
      if (has_bias(e)) value += read(type, desc->bias, row);
      if (has_gelu(e)) {
        if (has_aux(e)) write(type, desc->aux, column * desc->aux_ld + row, value);
        value = gelu.value(value);
      }
      if (has_dgelu(e)) value *= gelu.grad(read(type, desc->aux, column * desc->aux_ld + row), 0.0);
      row_sums[std::size_t(row)] += value;
      write(type, d, column * d_layout->ld + row, value);
    }
  if (e == Epilogue::dgelu_bgrad)
    for (Index row = 0; row < rows; ++row) write(type, desc->bias, row, row_sums[std::size_t(row)]);
  const auto leave_sums = [&](const std::vector<double>& factor, Index n) {
    for (Index i = 0; i < n; ++i) {
      double sum = 0.0;
      for (Index k = 0; k < depth; ++k) sum += factor[std::size_t(i * depth + k)];
      write(type, desc->bias, i, sum);
    }
  };
  if (e == Epilogue::bgrad_a) leave_sums(x, rows);
  if (e == Epilogue::bgrad_b) leave_sums(y, columns);
  return Status::success;
}

// On the stream: what the caller may change later is copied. A capture takes any product, and stops where a
// replay fails.
Status matmul(Handle, Desc desc, const void* alpha, const void* a, Layout a_layout, const void* b,
              Layout b_layout, const void* beta, const void* c, Layout c_layout, void* d, Layout d_layout,
              const Algo* algo, void* workspace, std::size_t workspace_bytes, CUstream_st* stream) {
  struct Call {
    DescOpaque desc;
    LayoutOpaque a, b, c, d;
    Algo algo;
    double alpha = 0.0, beta = 0.0;
  } call{*desc, *a_layout, *b_layout, *c_layout, *d_layout, *algo};
  const std::size_t scalar = std::size_t(item_bytes(desc->scale));
  const bool on_device = desc->pointer_mode == PointerMode::device;  // read when it runs
  if (!on_device) {
    std::memcpy(&call.alpha, alpha, scalar);
    std::memcpy(&call.beta, beta, scalar);
  }
  const auto status = std::make_shared<Status>(Status::success);
  cudaStreamCaptureStatus capture;
  cudaStreamIsCapturing(stream, &capture);
  const bool captured = capture != cudaStreamCaptureStatusNone;
  host_cuda::enqueue(stream, [=]() mutable {
    *status = multiply(&call.desc, on_device ? alpha : &call.alpha, a, &call.a, b, &call.b,
                       on_device ? beta : &call.beta, c, &call.c, d, &call.d, &call.algo, workspace,
                       workspace_bytes);
    if (captured && *status != Status::success) std::abort();
  });
  return *status;
}

std::size_t version() { return 130100; }

// In place before anything multiplies.
const bool in_place = [] {
  use_functions({version, create, desc_create, desc_destroy, desc_set, layout_create, layout_destroy,
                 preference_create, preference_destroy, preference_set, heuristic, matmul});
  return true;
}();

}  // namespace
}  // namespace fastopt::lt

namespace host_cuda {
CublasLt cublaslt;
}
