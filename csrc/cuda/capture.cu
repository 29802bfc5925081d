// A plan's step as part of a CUDA graph of the caller's: what differs from one replay to the next lies in
// memory of the plan, and is put there before each.
#include <cmath>

#include "cuda/store.cuh"

namespace fastopt {

void DevicePlan::prepare_capture(Index width, CudaStream stream) {
  captured_.width = width;
  const std::vector<const void*> none(std::size_t(size_), nullptr);
  const std::vector<double> coefs(std::size_t(width), 0.0);
  room(captured_.coefs, size_ * width);
  store(room(captured_.grads, size_), none.data(), size_, stream);
  advance_captured(coefs.data(), 1, nullptr, stream);
  // Without gradients they change nothing, but the kernels are loaded.
  norm(Monoid::sum_squares, {captured_.grads.get(), INFINITY}, stream);
  step_captured(captured_.grads.get(), {}, Inline<const void*>(), stream);
}

void DevicePlan::advance_captured(const double* coefs, Index n_rows, const std::int32_t* rows,
                                  CudaStream stream) {
  store(captured_.coefs.get(), coefs, n_rows * captured_.width, stream);
  place_captured_rows(rows, stream);
}

CoefChoice DevicePlan::prepare_ahead(Index width, CudaStream stream) {
  prepare_capture(width, stream);
  room(captured_.ahead, kAheadHead + kMostAhead * size_ * width);
  // The largest magnitude is another kernel than the norm.
  norm(Monoid::abs_max, {captured_.grads.get(), INFINITY}, stream);
  return {captured_.ahead.get(), captured_.coefs.get()};
}

void DevicePlan::advance_ahead(const double* coefs, Index n_rows, Index counts, Index first,
                               const std::int32_t* rows, double* own, CudaStream stream) {
  const Index size = ahead_size(n_rows, counts), each = n_rows * captured_.width;
  std::vector<double> table;
  if (!own) table.resize(std::size_t(size));
  double* const at = own ? own : table.data();
  at[0] = double(each), at[1] = double(counts), at[2] = double(first);
  std::copy_n(coefs, counts * each, at + kAheadHead);
  if (!own) store(captured_.ahead.get(), at, size, stream);
  place_captured_rows(rows, stream);
}

void DevicePlan::place_captured_rows(const std::int32_t* rows, CudaStream stream) {
  std::vector<std::int32_t> wanted(std::size_t(size_), 0);
  if (rows) std::copy_n(rows, size_, wanted.begin());
  if (wanted == captured_.known_rows) return;
  store(room(captured_.rows, size_), wanted.data(), size_, stream);
  captured_.known_rows = std::move(wanted);
}

void DevicePlan::capture_step(const void* const* grads, DeviceStep step, CudaStream stream) {
  Inline<const void*> own;
  const void* const* const placed = place_grads(grads, own, stream);
  step_captured(placed, step, own, stream);
}

void DevicePlan::step_captured(const void* const* grads, DeviceStep step, const Inline<const void*>& own,
                               CudaStream stream) const {
  step.grads = grads;
  step.coefs = captured_.coefs.get();
  step.width = captured_.width;
  step.rows = captured_.rows.get();
  launch_step(step, Inline<double>(), own, stream);
}

// The addresses are part of the graph, which stores them anew at each replay: another graph of this plan's
// may have others.
const void* const* DevicePlan::place_captured_grads(const void* const* grads, CudaStream stream) {
  if (!is_prepared())
    throw std::runtime_error("a plan of " + std::to_string(size_) +
                             " tensors needs prepare_capture before a stream is captured");
  store(captured_.grads.get(), grads, size_, stream);
  return captured_.grads.get();
}

}  // namespace fastopt
