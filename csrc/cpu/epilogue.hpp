// The epilogue of a matrix product: bias, activation, dropout, activation gradient and residual, applied to
// a block of C that is still in the first-level cache.
#pragma once

#include "core/dispatch.hpp"
#include "cpu/apply.hpp"
#include "formulas/philox.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

// The widest block that `finish` takes.
inline constexpr Index kFinishColumns = 256;

// Rows and columns of C; other m x n arrays lie `row` apart at the same place.
template <class T>
struct FinishBlock {
  T* c;
  Index c_row, rows, cols, row;
};

template <template <class> class F, class T>
static void finish_value(const FinishBlock<T>& block, const T* bias, const double* params) {
  const F<T> f(params);
  for (Index i = 0; i < block.rows; ++i) {
    T* c = block.c + i * block.c_row;
    if (bias) {
      FO_INDEPENDENT
      for (Index j = 0; j < block.cols; ++j) c[j] = f.value(c[j] + bias[j]);
    } else {
      FO_INDEPENDENT
      for (Index j = 0; j < block.cols; ++j) c[j] = f.value(c[j]);
    }
  }
}

template <template <class> class F, class T>
static void finish_grad(const FinishBlock<T>& block, const T* x, const T* y, const double* params) {
  const F<T> f(params);
  for (Index i = 0; i < block.rows; ++i) {
    T* c = block.c + i * block.c_row;
    const T *xi = F<T>::grad_needs_x ? x + i * block.row : c,
            *yi = F<T>::grad_needs_y ? y + i * block.row : c;
    FO_INDEPENDENT
    for (Index j = 0; j < block.cols; ++j) c[j] = chain(c[j], f.grad(xi[j], yi[j]));
  }
}

template <class List, class T>
struct FinishLoops;
template <template <class> class... F, class T>
struct FinishLoops<Formulas<F...>, T> {
  static constexpr void (*values[])(const FinishBlock<T>&, const T*, const double*) = {finish_value<F, T>...};
  static constexpr void (*grads[])(const FinishBlock<T>&, const T*, const T*,
                                   const double*) = {finish_grad<F, T>...};
};

template <class T>
static void add_bias(const FinishBlock<T>& block, const T* bias) {
  for (Index i = 0; i < block.rows; ++i) {
    T* c = block.c + i * block.c_row;
    FO_INDEPENDENT
    for (Index j = 0; j < block.cols; ++j) c[j] += bias[j];
  }
}

template <class T>
static void keep(const FinishBlock<T>& block, T* kept) {
  for (Index i = 0; i < block.rows; ++i) {
    const T* c = block.c + i * block.c_row;
    T* to = kept + i * block.row;
    FO_INDEPENDENT
    for (Index j = 0; j < block.cols; ++j) to[j] = c[j];
  }
}

// `at`: the number of the block's first element.
template <class T>
static void drop(const FinishBlock<T>& block, const Epilogue& e, Index at) {
  const T scale = T(e.kept_scale);
  const std::uint32_t last_kept = e.last_kept;
  std::uint32_t words[kFinishColumns];
  for (Index i = 0; i < block.rows; ++i) {
    T* c = block.c + i * block.c_row;
    philox_fill(e.seed, e.offset, std::uint64_t(at + i * block.row), block.cols, words);
    FO_INDEPENDENT
    for (Index j = 0; j < block.cols; ++j) c[j] = drop(words[j], last_kept, c[j], scale);
  }
}

template <class T>
static void add_residual(const FinishBlock<T>& block, const T* residual, T scale) {
  for (Index i = 0; i < block.rows; ++i) {
    T* c = block.c + i * block.c_row;
    const T* r = residual + i * block.row;
    FO_INDEPENDENT
    for (Index j = 0; j < block.cols; ++j) c[j] = fma(scale, c[j], r[j]);
  }
}

// Rows [row, row + rows) and columns [col, col + cols) of C, cols <= kFinishColumns.
template <class T>
static void finish(const GemmArgs& args, Index row, Index rows, Index col, Index cols) {
  using Loops = FinishLoops<Activations, T>;
  const Epilogue& e = args.epilogue;
  const Index at = row * args.n + col;
  const auto place = [at](auto* array) { return array ? array + at : nullptr; };
  const FinishBlock<T> block{static_cast<T*>(args.c) + row * args.c_row + col, args.c_row, rows, cols,
                             args.n};
  const T* bias = e.bias ? static_cast<const T*>(e.bias) + col : nullptr;
  if (bias && (e.kept_input || e.activation < 0)) {
    add_bias(block, bias);
    bias = nullptr;
  }
  if (e.kept_input) keep(block, place(static_cast<T*>(e.kept_input)));
  if (e.activation >= 0) Loops::values[e.activation](block, bias, e.params);
  if (e.kept_output) keep(block, place(static_cast<T*>(e.kept_output)));
  if (e.dropout) drop(block, e, at);
  if (e.gradient >= 0)
    Loops::grads[e.gradient](block, place(static_cast<const T*>(e.x)), place(static_cast<const T*>(e.y)),
                             e.params);
  if (e.residual) add_residual(block, place(static_cast<const T*>(e.residual)), T(e.residual_scale));
}

// The same of any number of columns.
template <class T>
static void finish_all(const GemmArgs& args, Index row, Index rows, Index begin_col, Index end_col) {
  for (Index col = begin_col; col < end_col; col += kFinishColumns)
    finish<T>(args, row, rows, col, end_col - col < kFinishColumns ? end_col - col : kFinishColumns);
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
