// Batch normalisation on the pool: what bindings and program share. Matrices have a channel in each column;
// arrays of a number for each channel are of the matrix's dtype, float or double.
#pragma once

#include <algorithm>

#include "core/dispatch.hpp"

namespace fastopt {

// What a batch leaves for its backward pass, and its unbiased variance for the running one.
struct BatchSaved {
  void *mean, *rstd, *var;
};

// Of at least two rows.
void batch_statistics(DType dtype, const void* x, Index rows, Index columns, double eps,
                      const BatchSaved& saved);
// That of a running variance.
void running_rstd(DType dtype, const void* running_var, Index columns, double eps, void* rstd);
// Takes a batch's statistics into the running ones. Negative momentum: all of `batches` batches count alike.
void track(DType dtype, const BatchSaved& saved, Index columns, double momentum, double batches,
           void* running_mean, void* running_var);

// The gradients of weight and bias, null where not wanted, and the center and slope of the input's; those
// null where the statistics are constants.
struct BatchGradients {
  void *weight, *bias, *center, *slope;
};
void batch_norm_sums(DType dtype, const void* dy, const void* x, Index rows, Index columns,
                     const BatchSaved& saved, const BatchGradients& gradients);

// The arguments of the input's gradient where the statistics are constants: that is a normalisation too.
inline BatchNormArgs constant_grad_args(const BatchNormGradArgs& args) {
  return {args.dy, args.columns, nullptr, args.rstd, args.weight, nullptr, args.dx, args.stream};
}

}  // namespace fastopt
