#include "core/plan.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/parallel.hpp"
#include "formulas/common.hpp"
#include "formulas/names.hpp"

namespace fastopt {
namespace {

// A row of coefficients times a tensor's factors, in `own`; the products are those of Common.
const double* scaled(const double* row, Index width, const double* factors, double* own) {
  std::copy_n(row, width, own);
  const Factors by{factors[0], factors[1], factors[2]};
  for (int c = 0; c <= kL1; ++c) own[c] *= by.gradient;
  own[kL2] *= by.l2;
  own[kLr] *= by.lr;
  return own;
}

}  // namespace

StepPlan::StepPlan(int rule, std::vector<PlanTensor> tensors)
    : rule_(rule), tensors_(std::move(tensors)), chunks_(cut(tensors_, kChunk)) {
  for (const PlanTensor& tensor : tensors_) elements_ += tensor.n;
  partials_.resize(chunks_.size());
}

template <class F>
void StepPlan::for_each_chunk(const void* const* grads, F&& f) {
  parallel_for(Index(chunks_.size()), elements_ >= kSerialElements, [&](Index i) {
    const PlanChunk& chunk = chunks_[std::size_t(i)];
    if (grads[chunk.tensor]) f(i, chunk, tensors_[std::size_t(chunk.tensor)]);
  });
}

void StepPlan::step(const void* const* grads, const double* coefs, Index width, const std::int32_t* rows,
                    const double* factors) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for_each_chunk(grads, [&](Index, const PlanChunk& chunk, const PlanTensor& tensor) {
    const double* row = coefs + (rows ? rows[chunk.tensor] : 0) * width;
    double own[kCommonCoefs + Names::kMax];
    if (factors) row = scaled(row, width, factors + Factors::kSize * chunk.tensor, own);
    update_piece(chunk.tensor, chunk.begin, chunk.end,
                 element_at(grads[chunk.tensor], chunk.begin, tensor.dtype), row);
  });
}

void StepPlan::update_piece(Index tensor_, Index begin, Index end, const void* grad,
                            const double* row) const {
  const PlanTensor& tensor = tensors_[std::size_t(tensor_)];
  if (tensor.packing.any() || item_bytes(tensor.dtype) == 2)
    return update_packed(tensor_, begin, end, grad, row);
  update_chunk(piece(tensor_, begin, end, grad), tensor.dtype, row);
}

void StepPlan::update_chunk(const StepChunk& chunk, DType dtype, const double* row) const {
  kernels().step[rule_].at[int(dtype)].at[chunk.ema != nullptr][is_bounded(row)](chunk, row);
}

StepChunk StepPlan::piece(Index tensor_, Index begin, Index end, const void* grad) const {
  const PlanTensor& tensor = tensors_[std::size_t(tensor_)];
  const DType dtype = tensor.dtype;
  StepChunk piece;
  piece.p = element_at(tensor.p, begin, dtype);
  piece.g = grad;
  for (int s = 0; s < 4; ++s) piece.states[s] = element_at(tensor.states[s], begin, state_dtype(dtype));
  piece.ema = element_at(tensor.ema, begin, state_dtype(dtype));
  piece.n = end - begin;
  return piece;
}

void StepPlan::measure(const void* const* grads, const double* coefs, Index width, const std::int32_t* rows,
                       double* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::fill(partials_.begin(), partials_.end(), 0.0);
  param_partials_.assign(chunks_.size(), 0.0);
  for_each_chunk(grads, [&](Index i, const PlanChunk& chunk, const PlanTensor& tensor) {
    const double* row = coefs + (rows ? rows[chunk.tensor] : 0) * width;
    const void* const grad = element_at(grads[chunk.tensor], chunk.begin, tensor.dtype);
    const Measured part = measure_piece(chunk, grad, row);
    partials_[std::size_t(i)] = part.update;
    param_partials_[std::size_t(i)] = part.param;
  });
  join_chunks(partials_, out);
  join_chunks(param_partials_, out + tensors_.size());
}

Measured StepPlan::measure_piece(const PlanChunk& chunk, const void* grad, const double* row) const {
  const PlanTensor& tensor = tensors_[std::size_t(chunk.tensor)];
  if (tensor.packing.any()) return measure_packed(chunk, grad, row);
  return kernels().measure[rule_].at[int(tensor.dtype)].at[is_bounded(row)](
      piece(chunk.tensor, chunk.begin, chunk.end, grad), row);
}

// Leaves each chunk's part of a reduction in partials_; 0 where a tensor has no array.
void StepPlan::reduce_chunks(Monoid monoid, const void* const* arrays) {
  const ReduceKernels& kernel = kernels().reduce[int(monoid)];
  std::fill(partials_.begin(), partials_.end(), 0.0);
  for_each_chunk(arrays, [&](Index i, const PlanChunk& chunk, const PlanTensor& tensor) {
    partials_[std::size_t(i)] = kernel.at[int(tensor.dtype)](
        element_at(arrays[chunk.tensor], chunk.begin, tensor.dtype), chunk.end - chunk.begin);
  });
}

double StepPlan::norm(const void* const* grads, double ord) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Monoid monoid = ord == 2.0 ? Monoid::sum_squares : ord == 1.0 ? Monoid::abs_sum : Monoid::abs_max;
  reduce_chunks(monoid, grads);
  double total = 0.0;
  for (const double part : partials_) {
    // A NaN partial stays: it fails every comparison.
    total = monoid == Monoid::abs_max ? (part <= total ? total : part) : total + part;
    if (std::isnan(total)) break;
  }
  return monoid == Monoid::sum_squares ? std::sqrt(total) : total;
}

void StepPlan::norms(const void* const* grads, double* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  reduce_chunks(Monoid::sum_squares, grads);
  join_chunks(partials_, out);
}

// The root of each tensor's sum of parts, which are added in the order of its chunks.
void StepPlan::join_chunks(const std::vector<double>& parts, double* out) const {
  std::fill_n(out, tensors_.size(), 0.0);
  for (std::size_t i = 0; i < chunks_.size(); ++i) out[chunks_[i].tensor] += parts[i];
  for (std::size_t t = 0; t < tensors_.size(); ++t) out[t] = std::sqrt(out[t]);
}

void StepPlan::param_norms(double* out) {
  std::vector<const void*> params;
  for (const PlanTensor& tensor : tensors_) params.push_back(tensor.p);
  norms(params.data(), out);
}

}  // namespace fastopt
