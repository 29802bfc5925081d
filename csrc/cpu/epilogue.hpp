// The epilogue of a matrix product: bias, activation, dropout, activation gradient and residual, applied to
// a block of C that is still in the first-level cache.
#pragma once

#include "core/dispatch.hpp"
#include "cpu/apply.hpp"
#include "formulas/philox.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// The widest run of columns that `finish` takes at a time.
inline constexpr Index kFinishColumns = 256;

// Rows [row, row + rows) and columns [col, col + cols) of C, cols <= kFinishColumns.
template <class T>
static void finish(const GemmArgs& args, Index row, Index rows, Index col, Index cols) {
  const Epilogue& e = args.epilogue;
  const T* bias = e.bias ? static_cast<const T*>(e.bias) + col : nullptr;
  const Value<T> value = e.activation < 0 ? nullptr : ActivationLoops<Activations, T>::values[e.activation];
  const Grad<T> grad = e.gradient < 0 ? nullptr : ActivationLoops<Activations, T>::grads[e.gradient];
  for (Index i = row; i < row + rows; ++i) {
    T* c = static_cast<T*>(args.c) + i * args.c_row + col;
    const Index at = i * args.n + col;
    if (bias) {
      FO_INDEPENDENT
      for (Index j = 0; j < cols; ++j) c[j] += bias[j];
    }
    if (e.kept_input) {
      T* kept = static_cast<T*>(e.kept_input) + at;
      FO_INDEPENDENT
      for (Index j = 0; j < cols; ++j) kept[j] = c[j];
    }
    if (value) value(c, c, cols, e.params);
    if (e.kept_output) {
      T* kept = static_cast<T*>(e.kept_output) + at;
      FO_INDEPENDENT
      for (Index j = 0; j < cols; ++j) kept[j] = c[j];
    }
    if (e.dropout) {
      std::uint32_t words[kFinishColumns];
      philox_fill(e.seed, e.offset, std::uint64_t(at), cols, words);
      const T scale = T(e.kept_scale);
      FO_INDEPENDENT
      for (Index j = 0; j < cols; ++j) c[j] = select(words[j] <= e.last_kept, c[j] * scale, T(0));
    }
    if (grad) {
      const T *x = static_cast<const T*>(e.x), *y = static_cast<const T*>(e.y);
      grad(c, x ? x + at : nullptr, y ? y + at : nullptr, c, cols, e.params);
    }
    if (e.residual) {
      const T* residual = static_cast<const T*>(e.residual) + at;
      const T scale = T(e.residual_scale);
      FO_INDEPENDENT
      for (Index j = 0; j < cols; ++j) c[j] = fma(scale, c[j], residual[j]);
    }
  }
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
