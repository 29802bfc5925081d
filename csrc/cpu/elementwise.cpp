// The elementwise driver: loops over formulas of one element.
#include "core/dispatch.hpp"
#include "cpu/storage.hpp"
#include "cpu/table.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

template <class T, class F>
void map(const void* x_, void* y_, Index n, F f) {
  const T* x = static_cast<const T*>(x_);
  T* y = static_cast<T*>(y_);
  FO_INDEPENDENT
  for (Index i = 0; i < n; ++i) y[i] = f(x[i]);
}

// The functions of math.hpp one by one, in the order of kMathNames (bindings), for the accuracy tests.
#define FO_MATH(function)                                                                     \
  {{[](const void* x, void* y, Index n) { map<float>(x, y, n, [](float v) { return function(v); }); },  \
    [](const void* x, void* y, Index n) { map<double>(x, y, n, [](double v) { return function(v); }); }}}
constexpr MathKernels kMath[] = {
    FO_MATH(exp),  FO_MATH(expm1), FO_MATH(log),     FO_MATH(log1p),
    FO_MATH(tanh), FO_MATH(erf),   FO_MATH(sigmoid), FO_MATH(sqrt),
};
#undef FO_MATH

}  // namespace

const MathKernels* math_table() { return kMath; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
