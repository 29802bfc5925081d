// The sums of a matrix over its rows, the gradient of a bias, on the pool.
#pragma once

#include "core/array.hpp"

namespace fastopt {

// out: `columns` values, which receive the sums, or with `add` get them added. x and out: float or double.
void column_sums(DType dtype, const void* x, Index rows, Index columns, void* out, bool add);

}  // namespace fastopt
