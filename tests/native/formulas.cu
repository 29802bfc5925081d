// Every formula, monoid and conversion inside a kernel, for float and double: what tests/test_codebase.py
// compiles where nvcc is found, so that nothing which a device lacks gets into them. It is not run.
#include "core/plan.hpp"
#include "formulas/monoids.hpp"
#include "formulas/philox.hpp"
#include "formulas/registry.hpp"
#include "formulas/storage.hpp"

namespace fastopt {

template <class T, template <class> class... F>
__device__ void activations(Formulas<F...>, const double* c, T* x) {
  ((x[0] += F<T>(c).value(x[1]) + F<T>(c).grad(x[2], x[3])), ...);
}

template <class T>
__device__ T joined(Pair<T> loss) {
  return loss.value + loss.grad;
}
template <class T, template <class> class... F>
__device__ void losses(Formulas<F...>, const double* c, T* x) {
  ((x[0] += joined(F<T>(c)(x[1], x[2]))), ...);
}

template <class T, template <class> class... F>
__device__ void rules(Formulas<F...>, const double* c, T* x) {
  ((x[0] += F<T>(c)(x[1], x[2], x + 3)), ...);
}

template <class T, template <class> class... M>
__device__ void monoids(Formulas<M...>, T* x) {
  ((x[0] = M<T>::merge(x[0], M<T>::push(M<T>::identity, x[1]))), ...);
  x[0] = Dot<T>::merge(x[0], Dot<T>::push(Dot<T>::identity, x[1], x[2]));
}

template <class S>
__device__ void convert(S* x) {
  x[0] = Store<S>::from(load(x[0]) + load(x[1]));
}

template <class T>
__global__ void kernel(const PlanChunk* chunks, const double* c, T* x, Bf16* b, F16* h) {
  const Index i = chunks[blockIdx.x].begin + threadIdx.x;
  activations(Activations{}, c, x + i);
  losses(Losses{}, c, x + i);
  rules(Rules{}, c, x + i);
  monoids(Formulas<Sum, AbsSum, SumSquares, Max, AbsMax>{}, x + i);
  convert(x + i);
  convert(b + i);
  convert(h + i);
  uint32_t words[4];
  philox_fill(1, 2, uint64_t(i), 4, words);
  x[i] += T(philox_word(1, 2, uint64_t(i))) + T(words[3]);
}

template __global__ void kernel<float>(const PlanChunk*, const double*, float*, Bf16*, F16*);
template __global__ void kernel<double>(const PlanChunk*, const double*, double*, Bf16*, F16*);

}  // namespace fastopt
